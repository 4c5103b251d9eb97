"""Fit a model: build the Trainer, run it, and report how training ended."""

import sys
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import pytorch_lightning as pl

from checkpoints.networks import build_model
from checkpoints.run_dir import describe_newest
from DiffusionModel import DiffusionModel
from runtime.compiling import compile_network
from runtime.launcher import OUT_OF_MEMORY, Machine, memory_errors
from runtime.processes import Refused, own_exit_status
from runtime.signals import Stop, exit_status
from training.divergence import MAX_RESTARTS, Start, first_start, restart
from training.settings import TrainingSettings
from training.setup import TrainingRun
from training.trackers import open_loggers
from training.trainer import Callbacks, build_callbacks, build_trainer


class CannotWrite(Exception):
    """The run directory cannot be written to; the message says why, in one line."""


@dataclass(frozen=True)
class Outcome:
    """How one attempt to train ended.

    complete: whether all steps are done or --max-time has run out. all_steps: whether all steps are
    done.
    """

    step: int
    seconds: float
    complete: bool
    all_steps: bool
    diverged: bool
    stopped_by: Signals | None
    saved: Path | None

    @property
    def when(self) -> str:
        return f"at step {self.step} after {self.seconds:.0f} s"

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended training before it was complete."""
        return bool(self.stopped_by) and not (self.complete and self.saved)


def fit_with_restarts(
    run: TrainingRun, checkpoint: dict[str, Any] | None, machine: Machine, stop: Stop
) -> int:
    """Train to the end, or until a signal; return the exit status.

    A run that diverges restarts from its last good checkpoint with different noise, at most
    `MAX_RESTARTS` times. Raises Refused if training cannot start or resume.
    """
    stop.deferred = True  # a signal that arrives before the first step is handled after it
    start = first_start(checkpoint)
    model = run.model
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    while True:
        if start.step:
            message = f"resuming at step {start.step} of {run.run_dir}"
            machine.processes.print(message, flush=True)
        try:
            outcome = fit(run, model, start, machine, stop)
        except CannotWrite as error:
            print(f"train.py: {error}", file=sys.stderr, flush=True)
            return machine.processes.abort(1)
        if outcome.interrupted or not outcome.diverged:
            return report(outcome, run, machine)
        if start.attempt >= MAX_RESTARTS:
            return report_divergence(outcome, run, machine)
        start = restart(run, machine, start.attempt + 1, outcome.when, outcome.seconds)
        model = build_model(run.model.hparams)
        model.load_state_dict(initial)


def fit(
    run: TrainingRun, model: DiffusionModel, start: Start, machine: Machine, stop: Stop
) -> Outcome:
    """Train from `start` until all steps are done, or until something ends training early.

    Raises Refused if there is not enough memory or the checkpoint cannot be resumed, and
    CannotWrite if the run directory cannot be written to.
    """
    callbacks = build_callbacks(run, start, machine, stop)
    trainer = build_trainer(run, start, machine, callbacks)
    try:
        with memory_errors():
            run_trainer(trainer, run, model, start, machine, callbacks)
    except OUT_OF_MEMORY:
        raise Refused(
            f"out of memory at batch size {run.settings.batch_size}: "
            "choose a smaller --batch-size or network"
        ) from None
    except OSError as error:
        raise CannotWrite(
            f"cannot write to {run.run_dir} ({error.strerror or error}) "
            f"at step {trainer.global_step}; {describe_newest(run.run_dir)}"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if not start.checkpoint or callbacks.checkpointing.started:
            raise
        raise Refused(
            f"checkpoint {start.path} cannot be resumed ({type(error).__name__}: {error})"
        ) from None
    checkpointing = callbacks.checkpointing
    all_steps = trainer.global_step == run.settings.max_steps
    complete = machine.processes.broadcast(all_steps or checkpointing.seconds_left() <= 0)
    return Outcome(
        step=trainer.global_step,
        seconds=checkpointing.seconds(),
        complete=complete,
        all_steps=all_steps,
        diverged=checkpointing.diverged,
        stopped_by=checkpointing.stopped_by,
        saved=checkpointing.saved or start.path,
    )


def run_trainer(
    trainer: pl.Trainer,
    run: TrainingRun,
    model: DiffusionModel,
    start: Start,
    machine: Machine,
    callbacks: Callbacks,
) -> None:
    images = run.settings.batch_size // machine.processes.world_size
    prepare_network(
        run.settings,
        model.to(machine.device),
        images,
        run.settings.compile,
        machine.precision,
        machine.processes.print,
    )
    if machine.is_first:
        trainer.loggers = open_loggers(run, start.step)
    trainer.fit(
        model,
        callbacks.batches,
        callbacks.validation.batches,
        ckpt_path=start.path,
        weights_only=True,
    )


def prepare_network(
    settings: TrainingSettings,
    model: DiffusionModel,
    images: int,
    mode: str,
    precision: Any,
    say: Any = print,
) -> None:
    """Set up gradient checkpointing and compile the network.

    images: images in a step of this process. mode: mode of torch.compile, "off", or "auto" to
    choose by device. Results change by rounding errors at most.
    """
    model.unet.recompute_activations(settings.gradient_checkpointing)
    if mode == "auto":
        mode = "default" if model.device.type == "cuda" else "off"
    compile_network(model, mode, images // settings.accumulate, precision, say)


def report(outcome: Outcome, run: TrainingRun, machine: Machine) -> int:
    """Print how training ended; return the exit status."""
    signal = outcome.stopped_by
    if signal and outcome.interrupted:
        machine.processes.print(
            f"stopped by {signal.name} {outcome.when}; {describe_newest(run.run_dir)}; "
            "run the same command again to resume",
            flush=True,
        )
        return own_exit_status(exit_status(signal))
    early = f"; ended before step {run.settings.max_steps} because of --max-time"
    over = "" if outcome.all_steps else early
    if over and run.model_settings.lr_schedule != "constant":
        over += ": with a longer --max-time, the learning rate would reach 0"
    late = f"; {signal.name} arrived during the last validation" if signal else ""
    message = f"trained, {outcome.when}{over}; checkpoint {outcome.saved}{late}"
    machine.processes.print(message, flush=True)
    return own_exit_status(exit_status(signal)) if signal else 0


def report_divergence(outcome: Outcome, run: TrainingRun, machine: Machine) -> int:
    """Print that training has diverged too often; return the exit status."""
    machine.processes.print(
        f"train.py: the loss is not finite {outcome.when}, for the {MAX_RESTARTS + 1}th time; "
        f"{describe_newest(run.run_dir)}; try a smaller --lr",
        file=sys.stderr,
    )
    return own_exit_status(1)
