"""The numbers in a run's metrics.csv."""

import contextlib
import csv
from pathlib import Path


def read_rows(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, each with its numeric cells.

    Reading stops where the file is damaged. Raises OSError.
    """
    rows = []
    file_name = run_dir / "metrics.csv"
    with open(file_name, newline="", errors="replace") as file, contextlib.suppress(csv.Error):
        for row in csv.DictReader(file):
            rows.append(numbers_of(row))
    return rows


def numbers_of(row: dict[str, str]) -> dict[str, float]:
    """The cells of a row that are numbers."""
    numbers = {}
    for name, value in row.items():
        with contextlib.suppress(TypeError, ValueError):
            numbers[name] = float(value)
    return numbers
