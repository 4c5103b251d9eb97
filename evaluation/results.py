"""Files of an evaluation: metrics.json, images and the plot of a sweep.

    write_metrics(Path("runs/mnist/metrics.json"), identity, measured)

The keys of `measured` are some of "bits_per_dim", "distances", "memorization", "neighbours",
"sweep" and "conditional"; tables.py formats them.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from image_data.grids import enlarge, write_png
from runtime.atomic_file import complete_file

# measurements that agree in all of these belong to the same record
IDENTITY = (
    *("checkpoint_sha256", "weights", "dataset", "size", "train_digest", "test_digest"),
    *("samples_digest", "reference_digest"),  # of images from files
)

# dictionaries that a later measurement of the same model adds to
MERGED = ("bits_per_dim", "distances", "memorization", "neighbours")

SCALE = 3  # factor by which images are enlarged


def write_metrics(file: Path, identity: dict[str, Any], measured: dict[str, Any]) -> None:
    """Add `measured` to the file's record of the same model and images (see `IDENTITY`).

    Records of other models or images are kept under "earlier". Numbers that are not finite become
    null. Raises OSError with a one-line message.
    """
    identity = finite(identity)  # tuples become lists, as in the JSON file
    records = read_records(file)
    same = [record for record in records if all(record.get(k) == identity.get(k) for k in IDENTITY)]
    known = same[0] if same else {}
    merged = {}
    for name, value in measured.items():
        if name in MERGED and isinstance(known.get(name), dict):
            value = {**known[name], **value}
        merged[name] = value
    record = {**known, **identity, **merged}
    if earlier := [record for record in records if record not in same]:
        record["earlier"] = earlier
    try:
        with complete_file(file) as temporary:
            temporary.write_text(json.dumps(finite(record), allow_nan=False) + "\n")
    except OSError as error:
        raise OSError(
            f"cannot write {file} ({error.strerror}): make room, or choose another folder"
        ) from None


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.json, the latest first; none if the file is missing or not JSON."""
    try:
        latest = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(latest, dict):
        return []
    earlier = latest.pop("earlier", [])
    records = [latest, *(earlier if isinstance(earlier, list) else [])]
    return [record for record in records if isinstance(record, dict) and record]


def finite(value: Any) -> Any:
    """Return the same dictionaries and lists, with None for every number that is not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_writable(folders: Sequence[Path], content: str, remedy: str) -> None:
    """Create folders, the first of which contains the others, and check that they are writable.

    content, remedy: what goes there, and what to do otherwise, for the message. Raises OSError with
    a one-line message.
    """
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write to {folders[0]} ({error.strerror}), where {content} go: {remedy}"
        ) from None


def write_image(file: Path, pixels: Tensor) -> None:
    """Write uint8 (C,H,W) as an enlarged PNG. Raises OSError."""
    write_png(file, enlarge(pixels.permute(1, 2, 0).numpy(), SCALE))


def write_plot(file: Path, sweep: dict[str, Any]) -> None:
    """Plot the distance against evaluations of the network and against seconds, as a PNG.

    Raises OSError.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    plot_sweep(left, sweep, "evaluations", "evaluations of the network for an image")
    plot_sweep(right, sweep, "seconds", "seconds for an image")
    left.set_ylabel(f"Frechet distance, {sweep['features']}")
    right.legend()
    with complete_file(file) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_sweep(axes: Any, sweep: dict[str, Any], cost: str, title: str) -> None:
    """Plot mean and range of the distance against a cost, a line for each sampler."""
    for sampler in dict.fromkeys(row["sampler"] for row in sweep["rows"]):
        rows = [row for row in sweep["rows"] if row["sampler"] == sampler]
        rows.sort(key=lambda row: row[cost])
        costs = [row[cost] for row in rows]
        distances = [row["frechet"] for row in rows]
        means = [distance["mean"] for distance in distances]
        axes.plot(costs, means, marker="o", label=sampler)
        lowest = [distance["lowest"] for distance in distances]
        highest = [distance["highest"] for distance in distances]
        axes.fill_between(costs, lowest, highest, alpha=0.2)
    axes.axhline(sweep["floor"], color="gray", linestyle="--", label="real images")
    axes.set(xscale="log", yscale="log", xlabel=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(alpha=0.3)
