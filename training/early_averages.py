"""Averages of the weights from early in a run, used as the guide in autoguidance."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from checkpoints.early_average import guiding_step, half_precision, is_early_step
from training.ema import Ema
from training.step_callback import StepCallback


class EarlyAverages(StepCallback):
    """Keep the averages of `ema` at the steps that `checkpoints.early_average` chooses.

    One or two of them may still be needed; older ones are dropped. Checkpoints store them under the
    key "early".
    """

    def __init__(self, ema: Ema):
        self.ema = ema
        self.averages: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if is_early_step(step):
            oldest = guiding_step(step)
            kept = {s: weights for s, weights in self.averages.items() if s >= oldest}
            self.averages = {**kept, step: half_precision(self.ema.weights)}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["early"] = self.averages

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.averages = checkpoint.get("early", {})
