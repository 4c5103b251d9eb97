"""Callbacks that act once for each optimizer step."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor


class StepCallback(pl.Callback):
    """A callback with `on_step_end`.

    Lightning calls `on_train_batch_end` for each micro-batch of a step when gradients are
    accumulated; `on_step_end` follows the last of them, after the optimizer's step.
    """

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.on_micro_batch_end(outputs["loss"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, pl_module)

    def on_micro_batch_end(self, loss: Tensor) -> None:
        """loss (): the loss of this process, divided by the number of micro-batches."""

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None: ...
