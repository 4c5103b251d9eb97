"""What the scripts' command lines share: one parser, and kinds of values that a person types, for its `type`.

    parser = Parser(__doc__)
    parser.add_argument("--num", type=whole(1), default=16, metavar="N", help="number of images (16)")

All of it is known before torch is imported: help, completion and typing errors do not wait.
"""

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from runtime.suggestions import nearest


class Parser(argparse.ArgumentParser):
    """Flags are typed in full. What is wrong is said in one line, with the flag or name that is nearest to a misspelt one, and
    the exit status is 2. `description` is what --help begins with: prose, and examples that are indented."""

    def __init__(self, description: str | None, epilog: str | None = None):
        super().__init__(
            usage=argparse.SUPPRESS,
            allow_abbrev=False,
            description=description,
            epilog=epilog,
            formatter_class=Help,
        )

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[reportIncompatibleMethodOverride]
        if "_ARGCOMPLETE" in os.environ:  # a shell asks how to go on
            import argcomplete

            argcomplete.autocomplete(self)
        words = list(sys.argv[1:] if args is None else args)
        flags = words[: words.index("--")] if "--" in words else words
        for (
            word
        ) in flags:  # before anything else: a flag that is missing may be the one that is misspelt
            flag = word.partition("=")[0]
            if re.fullmatch(r"--?[A-Za-z][^ ]*", flag) and flag not in self._option_string_actions:
                self.refuse(f"unknown flag {flag}", flag)
        found, rest = self.parse_known_args(words, namespace)
        if rest:
            self.refuse(f"{rest[0]!r} belongs to no flag", rest[0])
        return found

    def refuse(self, wrong: str, word: str) -> NoReturn:
        close = nearest(
            word, (flag for flag in self._option_string_actions if flag.startswith("--"))
        )
        self.error(
            wrong + (f", did you mean {close}?" if close else f": see python {self.prog} --help")
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, expected("one of", action.choices, str(value)))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class Help(argparse.RawDescriptionHelpFormatter):
    """Prose is broken at the terminal's width, what is indented stays as it is; --[no-]flag stands for both. Where there is room, a
    flag and its help stand on one line."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(
            prog,
            max_help_position=38 if shutil.get_terminal_size().columns >= 110 else 24,
            **options,
        )

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        return "\n\n".join(
            part if part.startswith(" ") else textwrap.fill(part, width, break_on_hyphens=False)
            for part in parts
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        return (action.help or "").removesuffix(
            " (default: %(default)s)"
        )  # which Python 3.10 adds to --[no-]flags

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        return super()._format_action_invocation(action)


def expected(what: str, known: Any, text: str, wrong: str | None = None) -> str:
    """One line: what was expected of the `text` that was typed, and which name the `wrong` one in it may stand for."""
    close = nearest(text if wrong is None else wrong, map(str, known))
    return (
        f"did you mean {close}? " if close else ""
    ) + f"expected {what} {', '.join(map(str, known))}, not {text!r}"


def whole(low: int) -> Callable[[str], int]:
    """A whole number of at least `low`."""

    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {low}, not {text!r}"
            )
        return int(text)

    return number


def real(low: float, high: float) -> Callable[[str], float]:
    """A number from `low` to `high`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected a number from {low:g} to {high:g}, not {text!r}"
            )
        return value

    return number


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; none of them for nothing."""
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, as in 1,2,2, not {text!r}"
        )
    return tuple(int(part) for part in text.split(",") if part)


def interval(text: str) -> tuple[float, float]:
    """LOW,HIGH."""
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected two steps, the lower first, as in 100,800, not {text!r}"
        )
    return int(match[1]), int(match[2])


def duration(text: str) -> float:
    """Seconds of 90s, 10m, 8h or HH:MM:SS."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text):
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d)", text):
        return int(match[1]) * 3600.0 + int(match[2]) * 60 + int(match[3])
    raise argparse.ArgumentTypeError(f"expected a time like 90s, 10m, 8h or 01:30:00, not {text!r}")


def names(*known: str) -> Callable[[str], list[str]]:
    """Some of `known`, separated by commas, each once."""

    def several(text: str) -> list[str]:
        given = list(dict.fromkeys(part.strip() for part in text.split(",")))
        if wrong := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(
                expected("some, separated by commas, of", known, text, wrong[0])
            )
        return given

    return several


def some_numbers(low: int) -> Callable[[str], tuple[int, ...]]:
    """Different whole numbers of at least `low`, at least one."""

    def several(text: str) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(numbers(text)))
        if not found or min(found) < low:
            raise argparse.ArgumentTypeError(
                f"expected whole numbers of at least {low}, separated by commas, not {text!r}"
            )
        return found

    return several
