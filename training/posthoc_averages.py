"""Power-function averages of the weights, for choosing the EMA length after training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from checkpoints import posthoc_ema
from checkpoints.checkpoint_file import CompleteCheckpointIO, checksum_path
from DiffusionModel import DiffusionModel
from training.step_callback import StepCallback


class PowerEmas(StepCallback):
    """Keep the two averages of `checkpoints.posthoc_ema` beside the live weights.

    Every checkpoint stores both under the key "power". With a checkpoint at a multiple of `every`
    steps, a snapshot of both is written to `folder/step_*.ckpt`: {"step", "weights": one dictionary
    for each length}. Once the run is longer than `most * every` steps, only the snapshots at every
    2nd, 4th, .. multiple of `every` are kept.
    """

    def __init__(self, folder: Path, every: int, most: int = 64):
        self.folder = folder
        self.every = every
        self.most = most
        self.weights: list[dict[str, Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        live = dict(pl_module.unet.named_parameters())
        start = self.weights or [live] * len(posthoc_ema.LENGTHS)
        self.weights = []
        for weights in start:
            self.weights.append(
                {name: weights[name].detach().clone().to(p.device) for name, p in live.items()}
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Snapshots of later steps are from before this run went back to an earlier checkpoint.
        if trainer.is_global_zero:
            self.remove(lambda step: step > trainer.global_step)

    @torch.no_grad()
    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        lerp: Any = torch._foreach_lerp_  # type: ignore[reportPrivateImportUsage]
        live = list(pl_module.unet.parameters())
        for weights, length in zip(self.weights, posthoc_ema.LENGTHS):
            decay = posthoc_ema.decay(trainer.global_step, posthoc_ema.gamma(length))
            averages = list(weights.values())
            lerp(averages, live, 1 - decay)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["power"] = self.weights
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self.save_snapshot(trainer.global_step)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.weights = checkpoint["power"]

    def save_snapshot(self, step: int) -> None:
        """Write this step's snapshot, and thin out the older ones as the run gets longer."""
        self.folder.mkdir(exist_ok=True)
        CompleteCheckpointIO().save_checkpoint(
            {"step": step, "weights": self.weights}, self.folder / f"step_{step:08d}.ckpt"
        )
        interval = self.every
        while step // interval > self.most:
            interval *= 2
        if interval > self.every:  # otherwise keep snapshots that were made at another interval
            self.remove(lambda step: step % interval != 0)

    def remove(self, condition: Callable[[int], bool]) -> None:
        """Remove the snapshots whose step satisfies the condition."""
        for file in self.folder.glob("step_*.ckpt"):
            if condition(int(file.stem.removeprefix("step_"))):
                file.unlink()
                checksum_path(file).unlink(missing_ok=True)
