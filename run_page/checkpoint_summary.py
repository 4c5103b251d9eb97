"""Summary of a run's newest valid checkpoint, for its page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import first_valid_checkpoint
from DiffusionModel import DiffusionModel

SCHEDULE_SETTINGS = (
    "T",
    "schedule",
    "beta_small",
    "beta_large",
    "betas",
    "zero_terminal_snr",
    "parameterization",
)


@dataclass(frozen=True)
class CheckpointSummary:
    """The newest valid checkpoint of a run."""

    path: str
    step: int
    seconds: int  # of training
    parameters: int
    settings: dict[str, Any]  # of the model and of its training
    process: DiffusionModel  # the model's noise schedule, with the smallest possible network


def read_checkpoint_summary(run_dir: Path) -> CheckpointSummary:
    """Read the newest checkpoint that can be read and summarized."""
    return summarize(first_valid_checkpoint(run_dir, check))


def check(checkpoint: dict[str, Any]) -> None:
    """Raise an error if a checkpoint cannot be summarized."""
    summarize(checkpoint)


def summarize(checkpoint: dict[str, Any]) -> CheckpointSummary:
    """Summarize the contents of a checkpoint."""
    settings = checkpoint["hyper_parameters"]
    schedule = {name: settings[name] for name in SCHEDULE_SETTINGS}
    return CheckpointSummary(
        path=str(checkpoint["path"]),
        step=checkpoint["global_step"],
        seconds=round(checkpoint["elapsed"]),
        parameters=sum(weight.numel() for weight in checkpoint["ema"]["weights"].values()),
        settings=checkpoint["course"] | settings,
        process=DiffusionModel(**schedule, width=4, mults=(1,), attention=(), blocks=1),
    )
