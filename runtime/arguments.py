"""A command-line parser, and functions for the `type` of its flags.

    parser = Parser(__doc__)
    parser.add_argument("--num", type=whole(1), default=16, help="number of images (16)")

Nothing here imports torch, so help, completion and error messages appear at once.
"""

import argparse
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from runtime.image_size import Size, size_of
from runtime.suggestions import nearest
from runtime.version import versions

FLAG = re.compile(r"--?[A-Za-z][^ ]*")
DEFAULT = re.compile(r"\((?!required|default)([^()]*)\)$")  # the end of a help text: (20)
ADDED_BY_PYTHON_3_10 = " (default: %(default)s)"  # to the help of --[no-]flags
WIDE_TERMINAL = 110  # columns; from this width, a flag and its help share a line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that does not accept abbreviated flags.

    An error is one line, with exit status 2. A misspelled flag or name gets a suggestion.
    `description` is the beginning of --help: prose and indented examples. If the first word is not
    a flag and resembles none, the error message suggests `main_flag` in front of it.
    """

    def __init__(self, description: str | None, epilog: str | None = None, main_flag: str = ""):
        super().__init__(
            usage=argparse.SUPPRESS,
            allow_abbrev=False,
            description=description,
            epilog=epilog,
            formatter_class=Help,
        )
        self.main_flag = main_flag
        self.add_argument("--version", action=PrintVersions, help="show versions and exit")

    def parse_args(  # type: ignore[reportIncompatibleMethodOverride]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions of the current line
            import argcomplete

            argcomplete.autocomplete(self)
        words = [expand_home(word) for word in (sys.argv[1:] if args is None else args)]
        self.check_flags(words[: words.index("--")] if "--" in words else words)
        if self.main_flag and words and not words[0].startswith("-"):
            meant = f"{self.main_flag} {words[0]}"
            self.error_with_suggestion(f"unexpected argument {words[0]!r}", words[0], meant)
        parsed, rest = self.parse_known_args(words, namespace)
        if rest:
            self.error_with_suggestion(f"unexpected argument {rest[0]!r}", rest[0])
        return parsed

    def check_flags(self, words: list[str]) -> None:
        """Report the first unknown flag.

        This is checked first: a misspelled flag would otherwise be reported as a missing one.
        """
        for word in words:
            flag = word.partition("=")[0]
            if FLAG.fullmatch(flag) and flag not in self._option_string_actions:
                self.error_with_suggestion(f"unknown flag {flag}", flag)

    def error_with_suggestion(self, message: str, word: str, otherwise: str = "") -> NoReturn:
        """Report an error and suggest the flag most similar to `word`, or else `otherwise`."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        if similar := nearest(word, flags) or otherwise:
            self.error(f"{message}, did you mean {similar}?")
        self.error(f"{message}: see python {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, invalid_choice(str(value), action.choices))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class PrintVersions(argparse.Action):
    """Print the versions and exit. They are not looked up unless the flag is given."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(versions())
        parser.exit()


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that wraps prose and leaves indented examples as they are.

    A Boolean flag is shown as --[no-]flag. A default in brackets at the end of a help text, "(20)",
    is shown as "(default: 20)". In a wide terminal, a flag and its help share a line.
    """

    def __init__(self, prog: str, **options: Any):
        is_wide = shutil.get_terminal_size().columns >= WIDE_TERMINAL
        super().__init__(prog, max_help_position=38 if is_wide else 24, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip().split("\n\n"):
            if not paragraph.startswith(" "):
                paragraph = textwrap.fill(paragraph, width, break_on_hyphens=False)
            paragraphs.append(paragraph)
        return "\n\n".join(paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(ADDED_BY_PYTHON_3_10)
        return DEFAULT.sub(r"(default: \1)", text)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        return super()._format_action_invocation(action)


def expand_home(word: str) -> str:
    """Expand ~/ at the beginning of a path. Shells do not expand it in --out=~/images."""
    flag, is_joined, value = word.partition("=")
    if is_joined and flag.startswith("--"):
        return f"{flag}={expand_home(value)}"
    return os.path.expanduser(word) if word.startswith("~/") else word


def invalid_choice(name: str, known: Iterable[Any], note: str = "") -> str:
    """Return the one-line error message for a name that is not one of `known`.

    note: added to the list of known names.
    """
    names = [str(one) for one in known]
    similar = nearest(name, names)
    suggestion = f", did you mean {similar}? Choose from" if similar else ": choose from"
    return f"invalid choice {name!r}{suggestion} {', '.join(names)}{note}"


def whole(low: int) -> Callable[[str], int]:
    """Return a parser of a whole number of at least `low`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {low}, not {text!r}"
            )
        return int(text)

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected a number from {low:g} to {high:g}, not {text!r}"
            )
        return value

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers separated by commas. An empty text gives an empty tuple."""
    if not re.fullmatch(r"(\s*\d+\s*(,\s*\d+\s*)*)?", text):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, as in 1,2,2, not {text!r}"
        )
    return tuple(int(number) for number in text.split(",") if number)


def some_numbers(low: int) -> Callable[[str], tuple[int, ...]]:
    """Return a parser of one or more whole numbers of at least `low`, without duplicates."""

    def parse(text: str) -> tuple[int, ...]:
        unique = tuple(dict.fromkeys(numbers(text)))
        if not unique or min(unique) < low:
            raise argparse.ArgumentTypeError(
                f"expected whole numbers of at least {low}, separated by commas, not {text!r}"
            )
        return unique

    return parse


def image_size(text: str) -> Size:
    """Parse a size such as 48x64 (height x width), or one number for a square."""
    match = re.fullmatch(r"\s*(\d+)(?:\s*[xX×]\s*(\d+))?\s*", text)
    sides = [int(side) for side in match.groups() if side] if match else [0]
    if min(sides) < 1:
        raise argparse.ArgumentTypeError(
            f"expected HEIGHTxWIDTH, as in 48x64, or one number for a square, not {text!r}"
        )
    return size_of(sides[0], sides[-1])


def two_numbers(text: str) -> tuple[float, float]:
    """Parse two numbers separated by a comma, the lower first."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(
            f"expected two numbers, the lower first, as in 0,4095, not {text!r}"
        )
    return low, high


def interval(text: str) -> tuple[float, float]:
    """Parse a range of t, LOW,HIGH, both ends included."""
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected two steps, the lower first, as in 100,800, not {text!r}"
        )
    return int(match[1]), int(match[2])


def duration(text: str) -> float:
    """Parse 90s, 10m, 8h or HH:MM:SS into seconds, more than 0."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text):
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    elif match := re.fullmatch(r"(\d+):(\d\d):(\d\d)", text):
        seconds = int(match[1]) * 3600.0 + int(match[2]) * 60 + int(match[3])
    else:
        raise argparse.ArgumentTypeError(
            f"expected a time like 90s, 10m, 8h or 01:30:00, not {text!r}"
        )
    if not seconds:
        raise argparse.ArgumentTypeError(f"expected a time of more than 0, not {text!r}")
    return seconds


def names(*known: str) -> Callable[[str], list[str]]:
    """Return a parser of one or more of `known`, separated by commas, without duplicates."""

    def parse(text: str) -> list[str]:
        unique = list(dict.fromkeys(name.strip() for name in text.split(",")))
        unknown = [name for name in unique if name not in known]
        if unknown:
            note = " (one, or several separated by commas)"
            raise argparse.ArgumentTypeError(invalid_choice(unknown[0], known, note))
        return unique

    return parse
