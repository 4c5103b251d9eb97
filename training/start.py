"""The three actions of train.py: prepare the data, estimate a run, train."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import read_checkpoint
from runtime.cores import cores_used_by_others, usable_cores
from runtime.launcher import Machine, Refused
from runtime.signals import Stop
from training.dry_run import dry_run
from training.fit import fit_with_restarts
from training.missed_validation import has_loss_and_preview
from training.run_directory import prepare_run_dir
from training.settings import Invocation, TrainingSettings
from training.setup import TrainingRun, set_up

BUSY = 0.2  # warn if other programs use more than this share of the cores


def prepare_data(settings: TrainingSettings, machine: Machine) -> int:
    """Download and decode the dataset; return the exit status."""
    run = machine.prepare(lambda: set_up(settings, machine))
    machine.processes.print(f"{run.data.name} is ready: {describe_images(run)}", flush=True)
    return 0


def estimate(settings: TrainingSettings, invocation: Invocation, machine: Machine) -> int:
    """Print the size, speed and duration to expect; return the exit status."""
    run = machine.prepare(lambda: set_up(settings, machine))
    machine.processes.print(describe(run, invocation, machine), flush=True)
    if machine.is_first:
        dry_run(run, machine)
    return 0


def train(
    settings: TrainingSettings,
    invocation: Invocation,
    machine: Machine,
    stop: Stop,
    locks: ExitStack,
) -> int:
    """Train, or resume training; return the exit status.

    The run directory stays locked until `locks` is closed.
    """

    def prepare(path: Path | None) -> tuple[tuple[TrainingRun, Any], Path | None]:
        run = set_up(settings, machine, evaluate=True)
        if machine.is_first:
            path = prepare_run_dir(run, invocation, machine, locks)
        return (run, read_checkpoint(path) if path else None), path

    # The first process downloads the data and finds the checkpoint.
    run, resume = machine.prepare_shared(prepare)
    say = machine.processes.print
    say(describe(run, invocation, machine), flush=True)
    if resume and is_trained(resume, settings) and not misses_validation(run, resume, machine):
        falls = settings.model.lr_schedule != "constant"
        at_its_end = falls and resume["global_step"] >= settings.max_steps
        say(
            f"{resume['path']} is already trained, {resume['global_step']} steps in "
            f"{resume['elapsed']:.0f} s; a larger --max-steps or --max-time trains it further"
            + ("; with more steps the learning rate rises and falls again" if at_its_end else "")
        )
        return 0
    report_busy_cores(machine)
    if run.about_weights:
        say(
            "resumed: the weights of --init-from are not used again"
            if resume
            else run.about_weights
        )
    curves = run.run_dir / "metrics.csv"
    if "tensorboard" in settings.logger:
        curves = f"tensorboard --logdir {run.run_dir.parent}"
    say(f"to follow the training: {run.run_dir / 'samples'}, and {curves}", flush=True)
    try:
        return fit_with_restarts(run, resume, machine, stop)
    except Refused as error:
        return machine.fail(str(error), by_all=error.by_all)


def report_busy_cores(machine: Machine) -> None:
    """Print that training on the CPU will be slower if other programs use many cores."""
    if machine.device.type != "cpu" or machine.processes.world_size > 1:
        return
    others, cores = cores_used_by_others(), len(usable_cores())
    if others > BUSY * cores:
        machine.processes.print(
            f"other programs use {others:.1f} of {cores} cores: training will be slower",
            file=sys.stderr,
        )


def is_trained(checkpoint: dict[str, Any], settings: TrainingSettings) -> bool:
    """Whether the checkpoint has reached the number of steps or the time of these settings."""
    if checkpoint["global_step"] >= settings.max_steps:
        return True
    return bool(settings.max_time) and checkpoint["elapsed"] >= settings.max_time


def misses_validation(run: TrainingRun, checkpoint: dict[str, Any], machine: Machine) -> bool:
    """Whether the run was killed in the validation of its last step."""
    step = checkpoint["global_step"]
    complete = step != run.settings.max_steps or all(has_loss_and_preview(run.run_dir, step))
    return not machine.processes.broadcast(complete)


def describe_images(run: TrainingRun) -> str:
    shape = "x".join(map(str, (run.data.depth, *run.data.images.shape[2:])))
    return f"{len(run.data):,} images {shape}, {len(run.unseen):,} unseen"


def describe(run: TrainingRun, invocation: Invocation, machine: Machine) -> str:
    """One line about data, network, preset and device."""
    millions = sum(p.numel() for p in run.model.parameters()) / 1e6
    device, world_size = machine.device.type, machine.processes.world_size
    chosen = f" (chosen for {device})" if invocation.flags["preset"] == "auto" else ""
    many = f"{world_size} x " if world_size > 1 else ""
    return (
        f"{run.data.name}: {describe_images(run)}; network of {millions:.1f}M parameters; "
        f"preset {run.settings.preset}{chosen}; {many}{device}, precision {machine.precision}"
    )
