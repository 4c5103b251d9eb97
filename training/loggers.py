"""The logs of a training run: metrics.csv, and TensorBoard with curves and images.

In both, the step of an entry is the number of steps done, from 1. When a run resumes from a
checkpoint, entries of later steps are dropped from metrics.csv and hidden in TensorBoard.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

from runtime.atomic_file import complete_file

# The columns that --eval-every fills. Every metrics.csv has them.
MEASURED = ("bits_per_dim", "classifier_distance")


class MetricsCsv(Logger):
    """Write `metrics.csv`: one line each time something is logged, with the number of steps done.

    Values have nine digits, the precision of float32. A resumed run keeps the lines up to the step
    of its checkpoint and drops the later ones, which it will write again. `measured` is the set of
    steps for which the file has the results of --eval-every.
    """

    def __init__(self, path: Path, columns: list[str], resumed_step: int):
        super().__init__()
        self.path = path
        self.columns = ["step", *columns]
        rows = self.read_rows(resumed_step)
        self.measured = {int(row["step"]) for row in rows if row.get(MEASURED[0])}
        with complete_file(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def read_rows(self, resumed_step: int) -> list[dict[str, str]]:
        """Read the complete rows of an earlier run, up to this step."""
        if not self.path.is_file():
            return []
        with open(self.path, newline="", errors="replace") as file:
            return [
                row
                for row in csv.DictReader(file)
                if {"step"} <= row.keys() <= set(self.columns)
                and None not in row.values()
                and row["step"].isdecimal()
                and int(row["step"]) <= resumed_step
            ]

    @property
    def name(self) -> str:
        return "metrics.csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the settings are in config.json."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {name: f"{value:.9g}" for name, value in metrics.items() if name in self.columns}
        row["step"] = str((step or 0) + 1)  # Lightning's step counts from 0
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)


def is_validated(file: Path, step: int) -> bool:
    """Return whether a metrics.csv has the validation loss of this step."""
    if not file.is_file():
        return False
    with open(file, newline="", errors="replace") as opened:
        rows = csv.DictReader(opened)
        return any(row.get("step") == str(step) and row.get("val_loss") for row in rows)


class TensorBoard(TensorBoardLogger):
    """Write `run_dir/tensorboard/`: curves, and images under their tags.

    A resumed run adds a file and hides the entries of earlier files after `resumed_step`.
    """

    def __init__(self, run_dir: Path, resumed_step: int):
        super().__init__(
            run_dir,
            name="",
            version="tensorboard",
            default_hp_metric=False,
            flush_secs=10,
            purge_step=resumed_step + 1 if resumed_step else 0,
        )

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, (step or 0) + 1)

    def show(self, tag: str, path: Path, step: int) -> None:
        """Show an image file under this tag, pixel for pixel."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.experiment.add_image(tag, pixels, step, dataformats="HWC")
