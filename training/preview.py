"""Preview images of a training run."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from DiffusionModel import DiffusionModel
from image_data.grids import pixels_of, write_grid
from runtime.signals import Stop
from sampling.plan import labels_in_turn, plan_sampling, sample_steps
from training.ema import Ema
from training.trackers import Expendable


def preview_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.png"


class Preview(pl.Callback):
    """Write `folder/step_*.png` after every validation: 36 samples of the averaged weights.

    The samples always start from the same noise and take `steps` steps of UniPC: a quick look, not
    a result. With a class-conditional model, image i has class i, modulo the number of classes. A
    signal ends sampling without an image. The loggers show the previews and `folder/real.png`.
    """

    def __init__(
        self, folder: Path, ema: Ema, batch_size: int, stop: Stop, count: int = 36, steps: int = 20
    ):
        self.folder = folder
        self.ema = ema
        self.batch_size = batch_size
        self.stop = stop
        self.count = count
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.show(trainer, "real", self.folder / "real.png")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        images = self.sample(pl_module)
        if images is not None:
            file = preview_file(self.folder, trainer.global_step)
            write_grid(file, pixels_of(images))
            self.show(trainer, "samples", file)

    def sample(self, model: DiffusionModel) -> Tensor | None:
        """Samples (count,C,H,W) of the averaged weights, or None if a signal arrived."""
        plan = plan_sampling(model, "unipc", min(self.steps, model.T))
        images = []
        with self.ema.applied(model):
            for first in range(0, self.count, self.batch_size):
                indices = range(first, min(first + self.batch_size, self.count))
                labels = labels_in_turn(model, indices)
                for t, x_t, _ in sample_steps(model, plan, indices, model.seed, labels):
                    if self.stop.signal:
                        return None
                    if t == 0:
                        images.append(x_t)
        return torch.cat(images)

    def show(self, trainer: pl.Trainer, tag: str, file: Path) -> None:
        """Show an image file in the loggers that show images."""
        for logger in trainer.loggers:
            if isinstance(logger, Expendable):
                logger.show(tag, file, trainer.global_step)
