"""Kinds of values that a person types, checked before torch is imported: for argparse's `type`."""

import argparse
import re
from collections.abc import Callable


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
