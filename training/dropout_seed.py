"""Seed dropout from the step, so that a resumed run has the same dropout masks."""

from typing import Any

import pytorch_lightning as pl
import torch

from DiffusionModel import DiffusionModel
from runtime.randomness import Purpose, seed_of


class DropoutSeed(pl.Callback):
    """Seed torch's default generators, which dropout uses, before each step.

    The seed depends on the model's seed, the step, the process, and how often the run went back to
    an earlier checkpoint.
    """

    def __init__(self, attempt: int):
        self.attempt = attempt

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DiffusionModel)
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a later micro-batch of the same step
        step, rank = trainer.global_step, trainer.global_rank
        seed = seed_of(pl_module.seed, Purpose.DROPOUT, step, rank, self.attempt) >> 1
        # torch.manual_seed would inspect the call stack at every step
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)
