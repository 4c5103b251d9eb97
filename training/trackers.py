"""The loggers of a run: metrics.csv, and the optional ones that --logger selects.

    loggers = open_loggers(run, start.step)     # on the first process

wandb and trackio are optional packages. When training resumes, they continue the same run, whose id
is in RUN_DIR/tracker_id.
"""

import contextlib
import io
import os
import re
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from runtime.atomic_file import complete_file
from training.loggers import MEASURED, MetricsCsv, TensorBoard
from training.setup import TrainingRun
from training.validation import bin_names

PROJECT = "ddpm"  # the project of all runs; for wandb, WANDB_PROJECT replaces it
ID_FILE = "tracker_id"
SECONDS = 60  # wandb waits this long for a key to be typed, and for its last upload


def open_loggers(run: TrainingRun, resumed_step: int) -> list[Logger]:
    """Return the loggers of a run that starts after `resumed_step` steps."""
    columns = ["train_loss", "val_loss", *bin_names(run.model.T), *MEASURED]
    makers = {
        "tensorboard": lambda: TensorBoard(run.run_dir, resumed_step),
        "wandb": lambda: Wandb(run),
        "trackio": lambda: Trackio(run),
    }
    others = [OptionalLogger(name, makers[name]) for name in run.settings.logger if name in makers]
    return [MetricsCsv(run.run_dir / "metrics.csv", columns, resumed_step), *others]


class OptionalLogger(Logger):
    """An optional logger: if it fails, training continues without it.

    A failure is reported once, in one line, and the logger is not used again. `make` creates the
    actual logger; it is called when there is something to log.
    """

    def __init__(self, name: str, make: Callable[[], Any]):
        super().__init__()
        self.label = name
        self.make = make
        self.logger: Any = None
        self.failed = False

    def attempt(self, method: str, *values: Any) -> None:
        """Call a method of the logger, unless it has failed already."""
        if self.failed:
            return
        try:
            self.logger = self.logger or self.make()
            getattr(self.logger, method)(*values)
        except Exception as error:  # network, disk, account, a mistake in the package
            self.failed = True
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            message = f"train.py: {self.label} failed ({reason}); training goes on without it"
            print(message, file=sys.stderr, flush=True)

    @property
    def name(self) -> str:
        return self.label

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *values: Any, **_: Any) -> None:
        self.attempt("log_hyperparams", *values)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.attempt("log_metrics", metrics, step)

    def show(self, tag: str, path: Path, step: int) -> None:
        """Show an image file under this tag."""
        self.attempt("show", tag, path, step)

    def save(self) -> None:
        self.attempt("save")

    def finalize(self, status: str) -> None:
        if self.logger:
            self.attempt("finalize", status)


def tracker_id(run_dir: Path) -> str:
    """Return the id of this run in trackers; a run directory without one gets a new one."""
    file = run_dir / ID_FILE
    found = file.read_text(errors="replace").strip() if file.is_file() else ""
    if re.fullmatch(r"[0-9a-f]{8}", found):
        return found
    new = uuid.uuid4().hex[:8]
    with complete_file(file) as temporary:
        temporary.write_text(f"{new}\n")
    return new


def plain_settings(run: TrainingRun) -> dict[str, Any]:
    """Return the settings of training, model and data as types that JSON supports."""
    settings = asdict(run.settings) | asdict(run.model_settings)
    del settings["model"]
    return {
        name: value if isinstance(value, int | float | str | list | None) else str(value)
        for name, value in settings.items()
    }


class Wandb(WandbLogger):
    """Log to Weights & Biases; its environment variables apply: WANDB_MODE, WANDB_PROJECT, ...

    Its files are in `run_dir/wandb/`. Metrics and images have the number of steps done as `STEP`.
    """

    STEP = "trainer/global_step"  # Lightning's name for it

    def __init__(self, run: TrainingRun):
        import wandb  # type: ignore[import-not-found]

        opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.run_dir.resolve().name,
            id=tracker_id(run.run_dir),
            resume="allow",
            dir=str(run.run_dir),
            config=plain_settings(run),
            settings=wandb.Settings(
                silent=True, console="off", login_timeout=SECONDS, finish_timeout=SECONDS
            ),
        )
        opened.define_metric(self.STEP)
        opened.define_metric("*", step_metric=self.STEP, step_sync=True)
        super().__init__(experiment=opened)
        folder = run.run_dir / "wandb"
        where = f"{folder}; to upload it, see wandb sync --help" if opened.offline else opened.url
        print(f"wandb: {where}", flush=True)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the settings were given at the start."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, (step or 0) + 1)  # Lightning's step counts from 0

    def show(self, tag: str, path: Path, step: int) -> None:
        self.log_image(tag, [str(path)], step - 1)

    def finalize(self, status: str) -> None:
        """End the run, so that the same process can resume it after a divergence."""
        self.experiment.finish(0 if status == "success" else 1)


class Trackio(Logger):
    """Log to trackio, which needs no account and has its own folder (TRACKIO_DIR)."""

    def __init__(self, run: TrainingRun):
        super().__init__()
        import trackio  # type: ignore[import-not-found]

        self.trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):  # it prints several lines of advice
            self.run: Any = trackio.init(
                project=PROJECT,
                name=f"{run.run_dir.resolve().name}-{tracker_id(run.run_dir)}",
                config=plain_settings(run),
                resume="allow",
                embed=False,
            )
        print(
            f"trackio: run {self.run.name}; to see it: trackio show --project {PROJECT}", flush=True
        )

    @property
    def name(self) -> str:
        return PROJECT

    @property
    def version(self) -> str:
        return self.run.name

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the settings were given at the start."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.run.log(dict(metrics), step=(step or 0) + 1)  # Lightning's step counts from 0

    def show(self, tag: str, path: Path, step: int) -> None:
        self.run.log({tag: self.trackio.Image(str(path))}, step=step)

    def finalize(self, status: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()
