"""The validation that a killed run has missed.

A step is saved before it is validated. A run that is killed in between resumes after that
validation; without this callback it would be missing in metrics.csv and among the previews.
"""

from pathlib import Path

import pytorch_lightning as pl

from training.lightning_workarounds import validate_now
from training.loggers import is_validated
from training.preview import Preview, preview_file


class MissedValidation(pl.Callback):
    """Validate the step that a run resumes from, or draw its preview, if that is missing.

    every: steps between validations; the last step has one, too. preview: that of the first
    process, None in the others.
    """

    def __init__(self, run_dir: Path, every: int, preview: Preview | None):
        self.run_dir = run_dir
        self.every = every
        self.preview = preview

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if not step or (step % self.every and step != trainer.max_steps):
            return
        # The first process reads the files and decides for all.
        has_loss, has_preview = trainer.strategy.broadcast(has_loss_and_preview(self.run_dir, step))
        if not has_loss:
            validate_now(trainer)
        elif self.preview and not has_preview:
            self.preview.on_validation_end(trainer, pl_module)


def has_loss_and_preview(run_dir: Path, step: int) -> tuple[bool, bool]:
    """Whether a run has the validation loss of this step, and its preview."""
    has_loss = is_validated(run_dir / "metrics.csv", step)
    return has_loss, preview_file(run_dir / "samples", step).is_file()
