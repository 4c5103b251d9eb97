"""bits/dim and the classifier's distance while a model is trained.

Measure(every=1000, count=500, unseen=unseen, judge=judge, real=Features.reference(judge, data), ...)     # a callback of Trainer
"""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from Dataset import DiffSet
from DiffusionModel import DiffusionModel
from evaluation import distances, metrics
from evaluation import features as Features
from runtime.signals import Stop
from sampling import sample_sets
from training.ema import Ema
from training.loggers import MEASURED, MetricsCsv
from training.progress import Progress

TERMS = 8  # of the bound, for each image


class Measure(pl.Callback):
    """Every `every` steps, of the averaged weights: the bound in bits/dim of `count` unseen images, and, where there is a `judge`
    (see `Features`), the Frechet distance of `count` samples to the training images, whose features are `real`; logged as `MEASURED`.

    Both come from noise that is always the same, and draw nothing from the training's. A signal ends them without a result, and
    a run that goes on from this step begins with them (several processes stop one step later: then they are left out). How many
    seconds it took is told to `spent`: they are not the training's.
    """

    def __init__(
        self,
        every: int,
        count: int,
        unseen: DiffSet,
        judge: Any,
        real: Tensor | None,
        ema: Ema,
        progress: Progress,
        batch_size: int,
        stop: Stop,
        spent: Callable[[float], None],
    ):
        self.every, self.count, self.unseen, self.judge, self.spent = (
            every,
            count,
            unseen,
            judge,
            spent,
        )
        self.ema, self.progress, self.batch_size, self.stop = ema, progress, batch_size, stop
        self.real = {} if real is None else distances.statistics(real)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        known = {
            step
            for logger in trainer.loggers
            if isinstance(logger, MetricsCsv)
            for step in logger.measured
        }
        if trainer.global_step and trainer.global_step not in known:
            self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % self.every == 0 and not self.stop.signal:
            assert isinstance(pl_module, DiffusionModel)
            began = time.monotonic()
            self.measure(trainer, pl_module)
            self.spent(time.monotonic() - began)

    @torch.no_grad()
    def measure(self, trainer: pl.Trainer, model: DiffusionModel) -> None:
        """Log both of the step that was just taken."""
        images = []
        with self.ema.applied(model):
            images_of = min(self.count, len(self.unseen))
            found = metrics.bound(
                model,
                self.unseen,
                images_of,
                TERMS,
                model.seed,
                self.batch_size,
                "",
                lambda: self.stop.signal,
            )
            for first in range(0, self.count if self.judge else 0, self.batch_size):
                if self.stop.signal:
                    break
                indices = range(first, min(first + self.batch_size, self.count))
                images.append(
                    sample_sets.drawn(model, sample_sets.plan(model), indices, model.seed)
                )
        if self.stop.signal:
            return
        values = [found["mean"]]
        if self.judge:
            features, _ = Features.seen(self.judge, torch.cat(images), batch_size=self.batch_size)
            values.append(distances.frechet(distances.statistics(features), self.real))
        for logger in trainer.loggers:
            logger.log_metrics(
                dict(zip(MEASURED, values)), trainer.global_step - 1
            )  # loggers count from 0
        self.progress.write(
            f"step {trainer.global_step}: {values[0]:.3f} bits/dim"
            + (f", classifier distance {values[1]:.2f}" if self.judge else "")
        )
