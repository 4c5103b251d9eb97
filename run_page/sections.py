"""A section of a run's page, or why it is missing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Section = TypeVar("Section")


@dataclass(frozen=True)
class Missing:
    """A section that cannot be shown."""

    reason: str  # one line


def read_section(read: Callable[..., Section], *arguments: object) -> Section | Missing:
    """Call `read`; return `Missing` if it raises an error.

    The files are not trusted, so any error of their contents is caught.
    """
    try:
        return read(*arguments)
    except (OSError, ValueError) as error:
        return Missing(" ".join(str(error).split()))
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        return Missing(f"unexpected contents ({type(error).__name__})")
