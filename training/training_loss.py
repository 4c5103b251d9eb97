"""Logging the training loss."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from training.lightning_workarounds import log_now
from training.step_callback import StepCallback


class TrainingLoss(StepCallback):
    """Log `train_loss` every `every` steps: the mean over the images of all processes."""

    def __init__(self, every: int):
        self.every = every
        self.loss = torch.zeros(())

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.loss = torch.zeros((), device=pl_module.device)

    def on_micro_batch_end(self, loss: Tensor) -> None:
        self.loss = self.loss + loss.detach()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step % self.every == 0:
            mean = trainer.strategy.reduce(self.loss, reduce_op="mean")
            log_now(trainer, {"train_loss": float(mean)}, trainer.global_step)
        self.loss = torch.zeros_like(self.loss)
