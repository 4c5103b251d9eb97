"""Save checkpoints and stop a training run, at the same step in all processes."""

import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from checkpoints.run_dir import describe_newest, remove_old_checkpoints
from runtime.processes import is_lost_process
from runtime.signals import EXIT_RUN_AGAIN, SIGNALS, Stop
from training.gradient_guard import MAX_SKIPPED, GradientGuard
from training.lightning_workarounds import exit_without_teardown
from training.settings import FixedSettings
from training.step_callback import StepCallback

TIME_IS_OVER = 1000  # a request to stop because of --max-time; larger than any signal's number


class StopRequests:
    """Requests to stop, shared between all processes.

    Each step reads the result of the exchange that the previous step began, so no step waits. A
    request is the number of a signal, `TIME_IS_OVER`, or 0 for none. A single process needs no
    exchange.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.pending: Any = None
        self.shared = torch.zeros((), dtype=torch.long)

    def connect(self) -> None:
        """Open the connection between the processes. Every process must call it."""
        self.group = torch.distributed.new_group(backend="gloo")

    def exchange(self, request: int) -> int:
        """Share this process's request; return the largest request of the previous exchange."""
        if not self.group:
            return request
        self.wait()
        previous = int(self.shared)
        self.shared = torch.tensor(request)
        self.pending = torch.distributed.all_reduce(
            self.shared, torch.distributed.ReduceOp.MAX, self.group, async_op=True
        )
        return previous

    def wait(self) -> None:
        """Wait until the last exchange is complete."""
        if self.pending:
            self.pending.wait()


class Checkpointing(StepCallback):
    """Save every `every` steps (not after a skipped step), at the end, and when a signal or
    `max_time` stops the run.

    A signal only sets `stop.signal`. Checkpoints are saved only at the end of a step, always at the
    same point of Lightning's loop. With several processes, a request to stop reaches all of them
    one step later, so they stop at the same step and none waits for another within a step.

    `max_time` (seconds) is measured by the first process and includes the runs that this one
    resumes. `fixed` is stored under the checkpoint's key "course". The newest `keep` checkpoints
    are kept, and also the newest one saved at a multiple of `every`.

    Afterwards `stopped_by` is the signal or None, and `saved` is the last checkpoint. `diverged` is
    true, and the last step was not saved, if the weights are not finite or no gradient has been
    finite for several steps.
    """

    def __init__(
        self,
        run_dir: Path,
        every: int,
        max_time: float | None,
        fixed: FixedSettings,
        stop: Stop,
        guard: GradientGuard,
        elapsed: float = 0.0,
        keep: int = 2,
    ):
        self.run_dir = run_dir
        self.every = every
        self.max_time = max_time
        self.fixed = fixed
        self.stop = stop
        self.guard = guard
        self.keep = keep
        self.requests = StopRequests()
        self.started = False
        self.elapsed = elapsed
        self.began = time.monotonic()
        self.stopped_by: signal.Signals | None = None
        self.saved: Path | None = None
        self.diverged = False

    # ---- time ----------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Return the training time so far, including the runs that this one resumes."""
        return self.elapsed + time.monotonic() - self.began

    def exclude(self, seconds: float) -> None:
        """Do not count these seconds as training time."""
        self.began += seconds

    def seconds_left(self) -> float:
        return (self.max_time or float("inf")) - self.seconds()

    # ---- saving and stopping -------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.monotonic()
        self.started = True
        if trainer.world_size > 1:
            self.requests.connect()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop_if_requested(trainer)
        save = trainer.should_stop or trainer.global_step % self.every == 0
        skipped = 0
        if save or trainer.global_step % 10 == 0:  # not every step, because it waits for the device
            skipped = int(self.guard.skipped)
        self.diverged = skipped >= MAX_SKIPPED or (save and not has_finite_weights(pl_module))
        if self.diverged:
            trainer.limit_val_batches = 0
            trainer.should_stop = True
        # After a skipped step the run may be diverging, so no checkpoint to go back to is saved.
        elif save and (trainer.should_stop or not skipped):
            self.save(trainer)

    def stop_if_requested(self, trainer: pl.Trainer) -> None:
        """End training after this step if it is the last one or any process received a request."""
        request = self.stop.signal or 0
        if trainer.is_global_zero and self.seconds_left() <= 0:
            request = TIME_IS_OVER
        request = self.requests.exchange(request)
        trainer.should_stop = bool(request) or trainer.global_step == trainer.max_steps
        if request and request != TIME_IS_OVER:
            self.stopped_by = signal.Signals(request)
            trainer.limit_val_batches = 0  # stop without another validation

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint of this step and remove the ones that are no longer needed."""
        self.saved = self.run_dir / "checkpoints" / f"step_{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(self.saved, weights_only=False)
        if trainer.is_global_zero:
            remove_old_checkpoints(self.run_dir, self.keep, self.every)

    def signal_arrived(self) -> bool:
        """Whether a signal was sent to any process. All processes must call this the same number of
        times."""
        return self.requests.exchange(self.stop.signal or 0) in SIGNALS

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exchange requests twice more, because no step follows the last validation."""
        self.requests.exchange(self.stop.signal or 0)
        request = self.requests.exchange(self.stop.signal or 0)
        if request:
            self.stopped_by = self.stopped_by or signal.Signals(request)
        self.requests.wait()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["course"] = asdict(self.fixed)
        checkpoint["elapsed"] = self.seconds()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.elapsed = checkpoint["elapsed"]

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End at once if another process is gone."""
        if trainer.world_size > 1 and is_lost_process(exception):
            reason = " ".join(str(exception).split())[:100]
            print(
                f"train.py: another process of this run is gone at step {trainer.global_step}; "
                f"{describe_newest(self.run_dir)}; run the same command again to resume ({reason})",
                file=sys.stderr,
            )
            exit_without_teardown(EXIT_RUN_AGAIN if "SLURM_JOB_ID" in os.environ else 1)


def has_finite_weights(model: torch.nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())
