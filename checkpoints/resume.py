"""Choose the checkpoint from which a training run resumes.

What is restored on resume, and where:

    weights, optimizer, learning rate, global step    Lightning, after `check_training_state`
    position in the data                              `TrainingBatches`, in Lightning's "loops"
    averages of the weights                           `Ema`, `EarlyAverages`, `PowerEmas`
    consecutive skipped steps, restarts               `GradientGuard`, `divergence.first_start`
    seconds of training                               `Checkpointing`
    metrics.csv and TensorBoard, truncated            `loggers`

The state of random generators is not stored, because all noise is a function of (seed, purpose,
step). The settings of the model and `FixedSettings` must match; all other flags may change.
"""

import reprlib
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import first_valid_checkpoint
from checkpoints.other_formats import is_other_format
from checkpoints.run_dir import list_checkpoints, move_run_aside, set_aside, step_of
from checkpoints.validation import check_training_state
from DiffusionModel import DiffusionModel
from runtime.flags import flag_of
from runtime.image_size import format_size


def find_resume_checkpoint(
    resume: str, run_dir: Path, model: DiffusionModel, run_settings: dict[str, Any], every: int = 1
) -> dict[str, Any] | None:
    """The contents of the checkpoint to resume from, or None to start from scratch.

    resume: one of
    - "auto": the newest valid checkpoint in the run directory, among those at multiples of `every`
      steps if there are any; later ones are renamed to `.skipped`. If all are from before step
      `every`, they are renamed as well, and the run starts from scratch;
    - "none": start from scratch, and rename the directory of an earlier run;
    - a checkpoint or another run directory.

    run_settings: what must match in addition to the settings of the model (batch size, data, ...).
    Raises ValueError or FileNotFoundError if there is no valid checkpoint with the same settings,
    or if the run directory has a later checkpoint than the chosen one.
    """
    if resume == "none":
        move_run_aside(run_dir)
        return None
    if resume == "auto" and not list_checkpoints(run_dir, every):
        existing = list_checkpoints(run_dir)
        if not existing or step_of(existing[0]) < every:
            # the run ended before the first step at which a checkpoint is due
            set_aside(existing)
            return None
        every = 1  # they were saved at another interval

    def check(checkpoint: dict[str, Any]) -> None:
        if is_other_format(resume):
            raise ValueError(
                "it holds only weights: resuming needs a checkpoint written by train.py"
            )
        check_same_settings(checkpoint, {**model.hparams, **run_settings})
        check_training_state(checkpoint, model)

    checkpoint = first_valid_checkpoint(run_dir if resume == "auto" else resume, check, every)
    later = later_checkpoints(run_dir, checkpoint)
    if later and resume != "auto":
        raise ValueError(
            f"{run_dir} holds a later checkpoint, {later[0].name}: "
            f"choose another --run-dir to resume from {resume}"
        )
    set_aside(later)
    return checkpoint


def check_same_settings(checkpoint: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ValueError, in one line, if the checkpoint was trained with other settings."""
    earlier = checkpoint["hyper_parameters"] | checkpoint["course"]
    if earlier["unet2d"] and not settings["unet2d"]:
        raise ValueError(
            "its network is a UNet2DModel of diffusers, which flags cannot make: give the same "
            "--init-from again, or this checkpoint as --init-from of another --run-dir"
        )
    differing = [name for name, value in settings.items() if earlier.get(name) != value]
    if differing:
        shown = [name for name in differing if flag_of(name).startswith("--")] or differing
        before = " ".join(as_flag(name, earlier.get(name)) for name in shown)
        now = " ".join(as_flag(name, settings[name]) for name in shown)
        raise ValueError(
            f"it was trained with {before}, not {now}: give the same settings (and the same "
            "--init-from, if there was one), another --run-dir, or --resume none; "
            "--init-from begins a new run with its weights"
        )


def as_flag(name: str, value: Any) -> str:
    """A setting and its value for a message, as a flag if there is one."""
    flag = flag_of(name)
    if isinstance(value, bool) and flag.startswith("--"):
        return flag if value else f"--no-{flag.removeprefix('--')}"
    if name == "size":
        return f"{flag} {format_size(value)}"
    if isinstance(value, (list, tuple)):
        return f"{flag} {','.join(map(reprlib.repr, value[:8]))}"
    return f"{flag} " + reprlib.repr(value).strip("'")


def later_checkpoints(run_dir: Path, checkpoint: dict[str, Any]) -> list[Path]:
    """The checkpoints in the run directory that are newer than this one, newest first."""
    files = list_checkpoints(run_dir)
    if checkpoint["path"] in files:
        return files[: files.index(checkpoint["path"])]
    return [file for file in files if file.name > f"step_{checkpoint['global_step']:08d}.ckpt"]
