"""The validation loss, over all times and in ten bins of t."""

import contextlib
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from DiffusionModel import DiffusionModel
from runtime.compiling import eager
from training.batches import ValidationBatches

BINS = 10


def bin_names(T: int) -> list[str]:
    """The names under which the loss in each bin of 1..T is logged."""
    ends = [-(-i * T // BINS) for i in range(BINS + 1)]
    return [f"val_loss_t{low + 1}-{high}" for low, high in pairwise(ends)]


class Validation(pl.Callback):
    """Log `val_loss` and the loss in each bin after every validation that was not cut short."""

    def __init__(self, batches: ValidationBatches):
        self.batches = batches
        self.context = contextlib.ExitStack()

    @property
    def cut_short(self) -> bool:
        return self.batches.cut_short

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.context.enter_context(eager())  # only training steps use the compiled network

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The sum of the errors in each bin, and the number of images.
        self.sums = torch.zeros(2, BINS, device=pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, DiffusionModel)
        t, error = outputs["t"], outputs["error"]
        bins = F.one_hot((t - 1) * BINS // pl_module.T, BINS).float()  # (B,10)
        self.sums += torch.stack([error[:, None] * bins, bins]).sum(dim=1)  # (2,10)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        errors, counts = trainer.strategy.reduce(self.sums, reduce_op="sum")
        if self.cut_short:
            return
        pl_module.log("val_loss", errors.sum() / counts.sum())
        for name, error, count in zip(bin_names(pl_module.T), errors, counts):
            if count:
                pl_module.log(name, error / count)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.context.close()
