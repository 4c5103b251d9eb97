"""What is logged of a training run: metrics.csv, and the same as curves in TensorBoard, with pictures.

Both count the steps that are done, from 1. What a run logged after the step from which it goes on is left out of both.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

from runtime.atomic_file import complete_file

MEASURED = ("bits_per_dim", "classifier_distance")  # what --eval-every logs beside the losses


class MetricsCsv(Logger):
    """`metrics.csv`: a line whenever something is logged, with the number of steps done; nine digits are all that float32
    has. A resumed run keeps what was written up to the step from which it goes on, and drops the rest, which it writes again;
    `measured` are the steps for which it has what --eval-every logs."""

    def __init__(self, path: Path, columns: list[str], resumed_step: int):
        super().__init__()
        self.path, self.columns = path, ["step", *columns]
        kept: list[dict[str, str]] = []
        if path.is_file():
            with open(path, newline="", errors="replace") as file:
                kept = [
                    row
                    for row in csv.DictReader(file)
                    if {"step"} <= row.keys() <= set(self.columns)
                    and None not in row.values()
                    and row["step"].isdecimal()
                    and int(row["step"]) <= resumed_step
                ]
        self.measured = {int(row["step"]) for row in kept if row.get(MEASURED[0])}
        with complete_file(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    @property
    def name(self) -> str:
        return "metrics.csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass  # they are in config.json

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {name: f"{value:.9g}" for name, value in metrics.items() if name in self.columns}
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(
                {"step": (step or 0) + 1} | row
            )  # Lightning's step counts from 0


class Curves(TensorBoardLogger):
    """`run_dir/tensorboard/`: curves, and pictures under their tags. Another part of the same run adds a file, and hides what the
    earlier ones have of later steps than `resumed_step`."""

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

    def show(self, tag: str, picture: Path, step: int) -> None:
        """The image file under this tag, pixel for pixel."""
        with Image.open(picture) as image:
            self.experiment.add_image(
                tag, np.asarray(image.convert("RGB")), step, dataformats="HWC"
            )
