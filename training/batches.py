"""Micro-batches for training and batches for validation, as the Trainer iterates over them.

Each is (x, y, share): images (B,C,H,W) in [-1, 1], labels (B,), and the `Share`: which part of the
step's batch these images are. It selects their random numbers.

Letters in the shape columns: B images of a micro-batch, C channels, H and W height and width.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from Dataset import Batches
from diffusion.draws import Share


def micro_batches(
    x: Tensor, y: Tensor, accumulate: int, rank: int = 0, world_size: int = 1, attempt: int = 0
) -> Iterator[tuple[Tensor, Tensor, Share]]:
    """Split one process's images (B,C,H,W) and labels (B,) of a step into micro-batches."""
    for i, (x_i, y_i) in enumerate(zip(x.chunk(accumulate), y.chunk(accumulate))):
        yield x_i, y_i, Share(rank * accumulate + i, world_size * accumulate, attempt)


class TrainingBatches:
    """The micro-batches of one process: `accumulate` for each batch of `Dataset.Batches`.

    attempt: the number of restarts after divergence; each has different noise. The state is that of
    `batches`, which counts a batch as served as soon as its first micro-batch is.
    """

    def __init__(self, batches: Batches, accumulate: int, attempt: int):
        self.batches = batches
        self.accumulate = accumulate
        self.attempt = attempt

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Share]]:
        rank, world_size = self.batches.rank, self.batches.world_size
        for x, y in self.batches:
            yield from micro_batches(x, y, self.accumulate, rank, world_size, self.attempt)

    def state_dict(self) -> dict[str, int]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches.load_state_dict(state)


class ValidationBatches:
    """The validation batches of one process, which end early if `is_stopped` returns true.

    `is_stopped` is called before each batch, the same number of times in all processes.
    `cut_short`: whether the last validation ended early.
    """

    def __init__(self, batches: Batches, is_stopped: Callable[[], bool]):
        self.batches = batches
        self.is_stopped = is_stopped
        self.cut_short = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Share]]:
        self.cut_short = False
        share = Share(self.batches.rank, self.batches.world_size)
        for x, y in self.batches:
            if self.is_stopped():
                self.cut_short = True
                return
            if len(x):  # the last one is empty in some processes
                yield x, y, share


class AccumulationProgress(pl.Callback):
    """Store Lightning's counters of micro-batches as steps, so that a run can be resumed with
    another `accumulate_grad_batches`."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        accumulate = trainer.accumulate_grad_batches
        self.convert(checkpoint, lambda count: count // accumulate)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        accumulate = trainer.accumulate_grad_batches
        self.convert(checkpoint, lambda count: count * accumulate)

    @staticmethod
    def convert(checkpoint: dict[str, Any], converted: Callable[[int], int]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            unfinished = counts["processed"] - counts["completed"]  # 1 within on_train_batch_end
            for name in ("ready", "started", "processed"):
                counts[name] = converted(counts[name])
            counts["completed"] = counts["processed"] - unfinished
