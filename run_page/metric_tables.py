"""What evaluate.py measured, as tables."""

from dataclasses import dataclass
from typing import Any

from evaluation.tables import conditional_rows, conditional_title, distance_rows
from run_page.charts import format_number

Row = tuple[str, str, str, str, str]  # measure, value, lowest to highest, floor, ceiling


@dataclass(frozen=True)
class Table:
    """A table of metrics."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Metrics:
    """All tables."""

    tables: list[Table]
    note: str  # not empty if the metrics are of another checkpoint than the page


def describe_metrics(measured: dict[str, Any], step: int | None) -> Metrics:
    """Make tables of metrics.json. step: that of the checkpoint on the page, if it is known. Raises
    ValueError, in one line, if there is nothing to show."""
    tables = []
    likelihood = measured.get("bits_per_dim", {})
    for name, title in (("bound", "variational bound"), ("flow", "probability flow")):
        if bits := likelihood.get(name):
            tables.append(likelihood_table(bits, title))
    for features, distances in measured.get("distances", {}).items():
        tables.append(distance_table(distances, features))
    if conditional := measured.get("conditional"):
        tables.append(conditional_table(conditional))
    if sweep := measured.get("sweep"):
        tables.append(sweep_table(sweep))
    if not tables:
        raise ValueError("nothing is measured yet")
    measured_step = measured.get("step")
    if step is None or measured_step == step:
        return Metrics(tables, note="")
    note = (
        f"These values are for step {measured_step}; the checkpoint on this page is at step {step}."
    )
    return Metrics(tables, note)


def likelihood_table(bits: dict[str, Any], title: str) -> Table:
    value = f"{format_value(bits['mean'])} ± {format_value(bits['standard_error'])}"
    row = (f"bits/dim, {title}", value, "", "", "")
    return Table(f"Likelihood of {bits['images']:,} unseen images", [row])


def conditional_table(conditional: dict[str, Any]) -> Table:
    rows: list[Row] = []
    for title, psnr, distance in conditional_rows(conditional):
        rows.append((f"PSNR, {title}", f"{psnr:.2f} dB", "", "", ""))
        if distance is not None:
            rows.append((f"perceptual distance, {title}", format_value(distance), "", "", ""))
    return Table(conditional_title(conditional), rows)


def distance_table(distances: dict[str, Any], features: str) -> Table:
    sets, images = distances["sets"], distances["images"]
    rows = [distance_row(title.strip(), value, sets) for title, value in distance_rows(distances)]
    if "sampling" in distances:
        sampling = distances["sampling"]
        samples = f"{sets} × {images:,} samples by {sampling['sampler']}, {sampling['steps']} steps"
    else:  # of evaluate.py --samples
        samples = f"{images:,} images of {distances['samples']}"
    return Table(f"{samples}, in features of {features}", rows)


def sweep_table(sweep: dict[str, Any]) -> Table:
    sets, rows = len(sweep["seeds"]), []
    for row in sweep["rows"]:
        variance = f", {row['variance']} variance" if row["variance"] else ""
        title = f"{row['sampler']}{variance}, {row['steps']} steps"
        value = row["frechet"] | {"floor": sweep["floor"], "ceiling": sweep["ceiling"]}
        rows.append(distance_row(title, value, sets))
    title = (
        f"Frechet distance of {sets} × {sweep['images']:,} samples to {sweep['train_images']:,} "
        f"training images, in features of {sweep['features']}"
    )
    return Table(title, rows)


def distance_row(title: str, value: dict[str, float], sets: int) -> Row:
    """Format a distance as a row: its mean and range over all sets, its floor and ceiling."""
    mean = format_value(value["mean"])
    spread = ""
    if sets > 1:
        spread = f"{format_value(value['lowest'])} to {format_value(value['highest'])}"
    floor = format_value(value["floor"]) if "floor" in value else ""
    ceiling = format_value(value["ceiling"]) if "ceiling" in value else ""
    return title, mean, spread, floor, ceiling


def format_value(value: float | None) -> str:
    """Format a number; None stands for one that is not finite."""
    return "not finite" if value is None else format_number(value)
