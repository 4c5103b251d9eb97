"""Kinds of values that a person types, checked before torch is imported: for argparse's `type`."""

import argparse
import difflib
import re
from collections.abc import Callable

COMPILE = ("off", "default", "reduce-overhead", "max-autotune")  # the modes of torch.compile


def whole(low: int) -> Callable[[str], int]:
    """A whole number of at least `low`."""
    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, not {text!r}")
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
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, not {text!r}")
        return value
    return number


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; none of them for nothing."""
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, as in 1,2,2, not {text!r}")
    return tuple(int(part) for part in text.split(",") if part)


def interval(text: str) -> tuple[float, float]:
    """LOW,HIGH."""
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"expected two steps, the lower first, as in 100,800, not {text!r}")
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
            close = difflib.get_close_matches(wrong[0], known, n=1)
            raise argparse.ArgumentTypeError((f"did you mean {close[0]}? " if close else "")
                                             + f"expected some of {', '.join(known)}, separated by commas, not {text!r}")
        return given
    return several


def some_numbers(low: int) -> Callable[[str], tuple[int, ...]]:
    """Different whole numbers of at least `low`, at least one."""
    def several(text: str) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(numbers(text)))
        if not found or min(found) < low:
            raise argparse.ArgumentTypeError(f"expected whole numbers of at least {low}, separated by commas, not {text!r}")
        return found
    return several
