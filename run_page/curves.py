"""The losses and the noise schedule of a run, as charts and tables."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from DiffusionModel import DiffusionModel
from evaluation.metrics_csv import read_rows
from run_page.charts import Series, chart, format_number

MAX_POINTS = 300  # of a curve
MAX_ROWS = 12  # of the table of validation losses

Row = dict[str, float]  # of metrics.csv


@dataclass(frozen=True)
class Schedule:
    """alpha_bar and log-SNR against t."""

    charts: list[Markup]
    rows: list[tuple[int, str, str]]  # t, alpha_bar, log-SNR


@dataclass(frozen=True)
class Losses:
    """The losses and measurements in metrics.csv."""

    charts: list[Markup]
    rows: list[tuple[str, str]]  # step and loss of some validations
    bins: list[tuple[str, str]]  # range of t and loss in the last validation


def describe_schedule(process: DiffusionModel) -> Schedule:
    """Draw the noise schedule; the table has its values at every tenth of T."""
    alpha_bar = process.schedule["alpha_bar"]  # (T+1,)
    log_snr = [log_signal_to_noise(value) for value in alpha_bar]
    times = evenly_spaced_times(process.T, MAX_POINTS)
    signal = Series("alpha_bar", times, [alpha_bar[t] for t in times])
    ratio = Series("log-SNR", times, [log_snr[t] for t in times])
    charts = [
        chart("Share of the image in x_t", "t", "alpha_bar", [signal]),
        chart("Signal-to-noise ratio", "t", "log-SNR", [ratio]),
    ]
    tenths = evenly_spaced_times(process.T, 10)
    rows = [(t, format_number(alpha_bar[t]), format_number(log_snr[t])) for t in tenths]
    return Schedule(charts, rows)


def log_signal_to_noise(alpha_bar: float) -> float:
    """ln(alpha_bar / (1 - alpha_bar)), infinite at the ends."""
    if 0 < alpha_bar < 1:
        return math.log(alpha_bar / (1 - alpha_bar))
    return math.inf if alpha_bar else -math.inf


def evenly_spaced_times(T: int, intervals: int) -> list[int]:
    return sorted({round(T * i / intervals) for i in range(intervals + 1)})


def read_losses(run_dir: Path) -> Losses:
    """Read metrics.csv. Raises ValueError, in one line."""
    if not (run_dir / "metrics.csv").is_file():
        raise ValueError(f"there is no {run_dir / 'metrics.csv'}")
    rows = [row for row in read_rows(run_dir) if has(row, "step")]
    validations = [row for row in rows if has(row, "val_loss")]
    bins = loss_bins(validations[-1]) if validations else {}
    losses = [
        mean_curve(rows, "train_loss", "training"),
        mean_curve(rows, "val_loss", "validation"),
    ]
    last_and_first = [*validations[-1:], *validations[:-1][:1]]
    by_t = [curve_by_t(row, bins) for row in last_and_first] if bins else []
    bits = [mean_curve(rows, "bits_per_dim", "bits/dim")]
    distance = [mean_curve(rows, "classifier_distance", "distance")]
    charts = [
        chart("Loss", "steps", "loss", losses, log=True),
        chart("Validation loss by t", "t", "loss", by_t, log=True),
        chart("Bits/dim", "steps", "bits/dim", bits),
        chart("Distance to real images", "steps", "distance", distance),
    ]
    charts = [figure for figure in charts if figure]
    if not charts:
        raise ValueError("no loss is logged yet")
    return Losses(charts, validation_rows(validations), bin_rows(validations, bins))


def has(row: Row, column: str) -> bool:
    """Whether a row has a finite value in a column."""
    return math.isfinite(row.get(column, math.nan))


def mean_curve(rows: Sequence[Row], column: str, name: str) -> Series:
    """A column against the step; many points are averaged in groups."""
    points = [(row["step"], row[column]) for row in rows if has(row, column)]
    if not points:
        return Series(name, [], [])
    groups = np.array_split(np.array(points), min(MAX_POINTS, len(points)))
    steps = [group[:, 0].mean() for group in groups]
    return Series(name, steps, [group[:, 1].mean() for group in groups])


def loss_bins(row: Row) -> dict[str, tuple[int, int]]:
    """The columns of a validation's loss by t, with their first and last t."""
    matches = (re.fullmatch(r"val_loss_t(\d+)-(\d+)", column) for column in row)
    return {match[0]: (int(match[1]), int(match[2])) for match in matches if match}


def curve_by_t(row: Row, bins: dict[str, tuple[int, int]]) -> Series:
    """The loss of a validation against the middle of every bin of t."""
    middles = [(low + high) / 2 for low, high in bins.values()]
    losses = [row.get(column, math.nan) for column in bins]
    return Series(f"step {row['step']:,.0f}", middles, losses)


def validation_rows(validations: Sequence[Row]) -> list[tuple[str, str]]:
    """Step and loss of at most `MAX_ROWS` validations, evenly spaced."""
    chosen = np.linspace(0, len(validations) - 1, min(MAX_ROWS, len(validations)))
    rows = [validations[round(i)] for i in chosen]
    return [(f"{row['step']:,.0f}", format_number(row["val_loss"])) for row in rows]


def bin_rows(validations: Sequence[Row], bins: dict[str, tuple[int, int]]) -> list[tuple[str, str]]:
    """Range of t and loss in the last validation."""
    return [
        (f"{low} to {high}", format_number(validations[-1][column]))
        for column, (low, high) in bins.items()
    ]
