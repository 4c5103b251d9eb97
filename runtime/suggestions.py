"""Names that nobody knows, and the known one that may have been meant.

nearest("fashion-mnist", NAMES)                    # "fashionmnist"
raise ValueError(unknown("dataset", "minst", NAMES, " or a folder"))
"""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that is most like `name`, capitals, dashes, underscores and spaces aside, or "" where none is."""
    plain = {plainly(other): other for other in known}
    close = difflib.get_close_matches(plainly(name), plain, n=1)
    return plain[close[0]] if close else ""


def plainly(name: str) -> str:
    return name.lower().translate({ord(mark): None for mark in "-_ "})


def unknown(kind: str, name: str, known: Iterable[str], or_else: str = "") -> str:
    """One line for an error: that the `name` of this kind is not known, which was perhaps meant, and which there are."""
    known = list(known)
    close = nearest(name, known)
    return (
        f"unknown {kind} {name!r}"
        + (f", did you mean {close}?" if close else ".")
        + f" Give {', '.join(known)}{or_else}"
    )
