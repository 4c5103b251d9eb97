"""Preview images of a training run.

Letters in the shape columns: n images, C channels, K channels of a condition, H and W height and
width.
"""

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from Dataset import DiffSet, to_float
from diffusion.conditions import as_picture
from diffusion.draws import unseen_conditions
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel
from image_data.grids import pixels_of, square_columns, write_grid
from runtime.signals import Stop
from sampling.plan import labels_in_turn, plan_sampling, sample_steps
from training.ema import Ema
from training.trackers import OptionalLogger

CONDITIONS = 12  # in the preview of an image-conditional model


def preview_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.png"


@dataclass(frozen=True)
class PreviewInputs:
    """Unseen images with their conditions, and their labels if the model has classes."""

    originals: Tensor  # (n,C,H,W)
    conditions: Tensor  # (n,K,H,W)
    labels: list[int] | None


def preview_inputs(data: DiffSet, model: ModelSettings, device: torch.device) -> PreviewInputs:
    """The first unseen images and their conditions, for an image-conditional model."""
    x = to_float(data.images[:CONDITIONS])
    originals, conditions = unseen_conditions(x, model.condition, model.depth, model.seed)
    labels = data.labels[:CONDITIONS].tolist() if model.classes else None
    return PreviewInputs(originals, conditions.to(device), labels)


class Preview(pl.Callback):
    """Write `folder/step_*.png` after every validation: 36 samples of the averaged weights.

    For an image-conditional model, write 12 conditions instead, each followed by a sample and by
    the original image. If the model has classes, the sample has the class of the original.

    The samples always start from the same noise and take `steps` steps of UniPC: a quick look, not
    a result. With a class-conditional model that has no condition, image i has class i, modulo the
    number of classes. A signal ends sampling without an image. The loggers show the previews and
    `folder/real.png`.
    """

    def __init__(
        self,
        folder: Path,
        ema: Ema,
        batch_size: int,
        stop: Stop,
        count: int = 36,
        steps: int = 20,
        inputs: PreviewInputs | None = None,
    ):
        self.inputs = inputs
        self.folder = folder
        self.ema = ema
        self.batch_size = batch_size
        self.stop = stop
        self.count = len(inputs.originals) if inputs else count
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.show(trainer, "real", self.folder / "real.png")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        images = self.sample(pl_module)
        if images is not None:
            columns = 0
            if self.inputs:
                images = with_inputs(images.cpu(), self.inputs)
                square = square_columns(len(images), *images.shape[2:])
                columns = 3 * max(1, round(square / 3))  # the three images of a row stay together
            file = preview_file(self.folder, trainer.global_step)
            write_grid(file, pixels_of(images), columns)
            self.show(trainer, "samples", file)

    def sample(self, model: DiffusionModel) -> Tensor | None:
        """Samples (count,C,H,W) of the averaged weights, or None if a signal arrived."""
        plan = plan_sampling(model, "unipc", min(self.steps, model.T))
        images = []
        with self.ema.applied(model):
            for first in range(0, self.count, self.batch_size):
                indices = range(first, min(first + self.batch_size, self.count))
                labels, condition = labels_in_turn(model, indices), None
                if self.inputs:
                    rows = slice(indices.start, indices.stop)
                    condition = self.inputs.conditions[rows]
                    labels = self.inputs.labels and self.inputs.labels[rows]
                steps = sample_steps(model, plan, indices, model.seed, labels, condition=condition)
                for t, x_t, _ in steps:
                    if self.stop.signal:
                        return None
                    if t == 0:
                        images.append(x_t)
        return torch.cat(images)

    def show(self, trainer: pl.Trainer, tag: str, file: Path) -> None:
        """Show an image file in the loggers that show images."""
        for logger in trainer.loggers:
            if isinstance(logger, OptionalLogger):
                logger.show(tag, file, trainer.global_step)


def with_inputs(samples: Tensor, inputs: PreviewInputs) -> Tensor:
    """The condition, the sample and the original of each image in turn, (3n,C,H,W)."""
    pictures = as_picture(inputs.conditions.cpu(), samples.shape[1])
    return torch.stack([pictures, samples, inputs.originals], dim=1).flatten(0, 1)
