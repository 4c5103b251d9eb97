"""Prepare the directory of a training run: lock it, find a checkpoint in it, write config.json."""

import json
import platform
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from checkpoints.resume import find_resume_checkpoint
from checkpoints.run_dir import lock_run_dir
from image_data.grids import write_grid
from runtime.atomic_file import complete_file
from runtime.devices import hardware
from runtime.launcher import Machine
from sampling.input_images import EXAMPLE_CONDITION
from training.settings import Invocation
from training.setup import TrainingRun


def prepare_run_dir(
    run: TrainingRun, invocation: Invocation, machine: Machine, locks: ExitStack
) -> Path | None:
    """Return the checkpoint to resume from, or None to start from the beginning.

    The run directory stays locked until `locks` is closed. config.json and the real images are
    written now, so that a folder without write permission is refused before training. Raises
    ValueError or FileNotFoundError with a one-line message.
    """
    try:
        lock = lock_run_dir(run.run_dir)
        if lock:
            locks.enter_context(lock)
        resume = find_checkpoint(run)
        if not resume or resume["global_step"] < run.settings.max_steps:
            (run.run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
            # The directory is new, or an earlier run was moved aside together with its lock.
            if not lock or not (run.run_dir / ".lock").exists():
                locks.enter_context(lock_run_dir(run.run_dir))
            write_config(run, invocation, machine)
            write_real_images(run)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot use {run.run_dir} ({error.strerror}): choose another --run-dir"
        ) from None
    return resume["path"] if resume else None


def find_checkpoint(run: TrainingRun) -> dict[str, Any] | None:
    """Return the checkpoint to resume, or None. Raises ValueError or FileNotFoundError."""
    resume, fixed = run.settings.resume, asdict(run.fixed)
    try:
        return find_resume_checkpoint(resume, run.run_dir, run.model, fixed)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot use the checkpoint {error.filename} ({error.strerror}): make it readable, or "
            "give another --resume"
        ) from None


def write_real_images(run: TrainingRun) -> None:
    """Write samples/real.png, and samples/condition.png for an image-conditional model."""
    images, folder, depth = run.unseen.images[:36], run.run_dir / "samples", run.unseen.depth
    write_grid(folder / "real.png", images[:, :depth].permute(0, 2, 3, 1).numpy())
    if run.model_settings.condition:
        given = images[:1, depth:] if run.unseen.paired else images[:1]
        write_grid(run.run_dir / EXAMPLE_CONDITION, given.permute(0, 2, 3, 1).numpy())


def write_config(run: TrainingRun, invocation: Invocation, machine: Machine) -> None:
    """Write config.json: the command, all flags, the hardware and the versions."""
    found = {
        "dropout": run.model_settings.dropout,
        "image_size": run.data.size,
        "run_dir": str(run.run_dir),
    }
    config = {
        "command": invocation.command,
        "settings": invocation.flags | found,
        "preset": run.settings.preset,
        "device": machine.device.type,
        "precision": machine.precision,
        "hardware": hardware(machine.device.type),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("pytorch-lightning"),
    }
    with complete_file(run.run_dir / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=1, default=str) + "\n")
