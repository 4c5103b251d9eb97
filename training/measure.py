"""Measure bits/dim and the Frechet distance in classifier features during training.

Measure(every=1000, count=500, unseen=unseen, ...)     # a callback of the Trainer, for --eval-every
"""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from Dataset import DiffSet
from DiffusionModel import DiffusionModel
from evaluation import bits_per_dim, distances
from evaluation.features import extract_features
from runtime.signals import Stop
from sampling.plan import plan_sampling
from sampling.sample_sets import sample_batch
from training.ema import Ema
from training.lightning_workarounds import log_now
from training.loggers import MEASURED, MetricsCsv
from training.progress import Progress
from training.step_callback import StepCallback

TERMS = 8  # terms of the variational bound that are evaluated for each image


class Measure(StepCallback):
    """Measure the averaged weights every `every` steps, and log the results as `MEASURED`.

    It measures the variational bound in bits/dim of `count` unseen images and, if there is a
    feature `extractor`, the Frechet distance between `count` samples and the training images, whose
    features are `real_features`.

    Both use the same noise every time and do not affect the random numbers of training. A signal
    ends a measurement without a result; a run that resumes from this step repeats it first.
    (With several processes the run stops one step later, and this result stays missing.) `exclude`
    is called with the seconds that a measurement took, which do not count as training time.
    """

    def __init__(
        self,
        every: int,
        count: int,
        unseen: DiffSet,
        extractor: Any,
        real_features: Tensor | None,
        ema: Ema,
        progress: Progress,
        batch_size: int,
        stop: Stop,
        exclude: Callable[[float], None],
    ):
        self.every = every
        self.count = count
        self.unseen = unseen
        self.extractor = extractor
        self.real_statistics = {}
        if real_features is not None:
            self.real_statistics = distances.statistics(real_features)
        self.ema = ema
        self.progress = progress
        self.batch_size = batch_size
        self.stop = stop
        self.exclude = exclude

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        measured: set[int] = set()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                measured |= logger.measured
        if step and step not in measured:
            self.on_step_end(trainer, pl_module)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step % self.every == 0 and not self.stop.signal:
            assert isinstance(pl_module, DiffusionModel)
            began = time.monotonic()
            self.measure(trainer, pl_module)
            self.exclude(time.monotonic() - began)

    @torch.no_grad()
    def measure(self, trainer: pl.Trainer, model: DiffusionModel) -> None:
        """Measure the averaged weights of the current step and log the results."""
        with self.ema.applied(model):
            bound = self.bound(model)
            images = self.samples(model) if self.extractor else []
        if self.stop.signal:
            return
        bits = bound["mean"]
        values = [bits]
        text = f"step {trainer.global_step}: {bits:.3f} bits/dim"
        if self.extractor:
            distance = self.distance(torch.cat(images))
            values.append(distance)
            text += f", Frechet distance {distance:.2f} in classifier features"
        log_now(trainer, dict(zip(MEASURED, values)), trainer.global_step)
        self.progress.write(text)

    def bound(self, model: DiffusionModel) -> dict[str, Any]:
        """Return the bound in bits/dim of `count` unseen images; empty after a signal."""
        return bits_per_dim.variational_bound(
            model,
            self.unseen,
            min(self.count, len(self.unseen)),
            TERMS,
            model.seed,
            self.batch_size,
            "",
            lambda: self.stop.signal,
        )

    def samples(self, model: DiffusionModel) -> list[Tensor]:
        """Sample `count` images in batches; fewer after a signal."""
        images = []
        plan = plan_sampling(model)
        for first in range(0, self.count, self.batch_size):
            if self.stop.signal:
                break
            indices = range(first, min(first + self.batch_size, self.count))
            images.append(sample_batch(model, plan, indices, model.seed))
        return images

    def distance(self, images: Tensor) -> float:
        """Return the Frechet distance between the features of these images and the real ones."""
        found, _ = extract_features(self.extractor, images, batch_size=self.batch_size)
        return distances.frechet(distances.statistics(found), self.real_statistics)
