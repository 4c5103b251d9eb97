"""Going back to an earlier checkpoint after the loss has become infinite or NaN."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import read_checkpoint
from checkpoints.resume import find_resume_checkpoint
from runtime.launcher import Machine
from runtime.processes import Refused
from training.setup import TrainingRun

MAX_RESTARTS = 3


@dataclass(frozen=True)
class Start:
    """Where training starts: at a checkpoint, or at the initial weights.

    attempt: how often this run has gone back to an earlier checkpoint. Each attempt uses different
    noise. elapsed: seconds of training so far, if no checkpoint holds them.
    """

    checkpoint: dict[str, Any] | None
    attempt: int = 0
    elapsed: float = 0.0

    @property
    def step(self) -> int:
        return self.checkpoint["global_step"] if self.checkpoint else 0

    @property
    def path(self) -> Path | None:
        return self.checkpoint["path"] if self.checkpoint else None


def first_start(checkpoint: dict[str, Any] | None) -> Start:
    """Return where a run starts or resumes."""
    attempt = checkpoint["noise"]["stream"] if checkpoint else 0
    return Start(checkpoint, attempt)


def restart(run: TrainingRun, machine: Machine, attempt: int, when: str, elapsed: float) -> Start:
    """Return the last good checkpoint as the start of another attempt, or the initial weights if
    no checkpoint is from step `save_every` or later, and print a message.

    Checkpoints at a multiple of `save_every` are used if there are any, so that a run that was
    stopped and resumed in between goes back to the same one. when: step and time of the divergence,
    for the message. Raises Refused if there are such checkpoints and none is valid.
    """
    path, refusal = None, ""
    if machine.is_first:
        try:
            path = find_restart_checkpoint(run)
        except (ValueError, OSError) as error:
            refusal = str(error)
    path, refusal = machine.processes.broadcast((path, refusal))
    if refusal:
        raise Refused(
            f"the loss is not finite {when}, and there is nothing to go back to: {refusal}",
            by_all=True,
        )
    machine.processes.print(
        f"the loss is not finite {when}: back to {path or 'the start'} with different noise, "
        f"restart {attempt} of {MAX_RESTARTS}",
        file=sys.stderr,
        flush=True,
    )
    run.batches.load_state_dict({"epoch": 0, "batch": 0})
    checkpoint = read_checkpoint(path) if path else None
    if checkpoint:
        checkpoint["noise"] = {"stream": attempt, "skipped": 0}
        checkpoint["elapsed"] = elapsed
    return Start(checkpoint, attempt, elapsed)


def find_restart_checkpoint(run: TrainingRun) -> Path | None:
    every = run.settings.save_every
    checkpoint = find_resume_checkpoint("auto", run.run_dir, run.model, asdict(run.fixed), every)
    return checkpoint["path"] if checkpoint else None
