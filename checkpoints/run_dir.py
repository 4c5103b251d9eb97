"""The files of a run directory: its lock, its settings, and its checkpoints, newest first.

run/.lock
run/config.json
run/checkpoints/step_00005000.ckpt
run/checkpoints/step_00005000.ckpt.sha256
"""

import fcntl
import json
from pathlib import Path
from typing import Any

from checkpoints.checkpoint_file import checksum_path
from runtime.atomic_file import remove_temporaries


def list_checkpoints(run_dir: str | Path, every: int = 1) -> list[Path]:
    """The checkpoints at multiples of `every` steps in a run directory, newest first.

    Any of them may be damaged.
    """
    steps = {}
    for path in Path(run_dir).glob("checkpoints/step_*.ckpt"):
        number = path.stem.removeprefix("step_")
        if number.isdecimal() and int(number) % every == 0:
            steps[path] = int(number)
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def run_dir_of(path: Path) -> Path:
    """The run directory if `path` is the folder of its checkpoints, else `path` itself."""
    is_folder = path.name == "checkpoints" and any(path.glob("step_*.ckpt"))
    return path.resolve().parent if is_folder else path


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint with the most steps, or None. It may be damaged."""
    return next(iter(list_checkpoints(run_dir)), None)


def step_of(checkpoint: Path) -> int:
    """The number of steps in the name of a checkpoint file."""
    return int(checkpoint.stem.removeprefix("step_"))


def describe_newest(run_dir: Path) -> str:
    """A sentence with the checkpoint from which a run can resume, for a script's last line."""
    file = newest_checkpoint(run_dir)
    return f"the last checkpoint is {file}" if file else "there is no checkpoint yet"


def read_run_settings(run_dir: Path) -> dict[str, Any]:
    """The "settings" and the "preset" in config.json, or {} if it cannot be read."""
    try:
        config = json.loads((run_dir / "config.json").read_text())
        return {**config["settings"], "preset": config["preset"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def lock_run_dir(run_dir: Path) -> Any:
    """Lock a run directory, so that no other process can train in it.

    Returns the open lock file, which holds the lock until it is closed, or None if the directory
    does not exist. Raises ValueError if another process holds the lock, and OSError if the
    directory is not writable.
    """
    if not run_dir.is_dir():
        return None
    file = open(run_dir / ".lock", "a")  # noqa: SIM115 (it stays open)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process is training in {run_dir}: wait for it, or choose another --run-dir"
        ) from None
    except OSError:
        return file  # a file system without locks
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "samples", run_dir / "averages"):
        remove_temporaries(folder)  # left by a process that was killed
    return file


def remove_old_checkpoints(run_dir: Path, keep: int, every: int) -> None:
    """Remove checksums without a checkpoint, and all checkpoints except the newest `keep`.

    The newest checkpoint at a multiple of `every` steps is also kept. A run that diverges restarts
    from it, so the result does not depend on where the run was interrupted.
    """
    regular = list_checkpoints(run_dir, every)[:1]
    for old in set(list_checkpoints(run_dir)[keep:]) - set(regular):
        old.unlink()
    for checksum in run_dir.glob("checkpoints/step_*.ckpt.sha256"):
        if not checksum.with_suffix("").exists():
            checksum.unlink()


def set_aside(checkpoints: list[Path]) -> None:
    """Rename checkpoints to `.skipped`, so that they no longer count as checkpoints of the run."""
    for file in checkpoints:
        file.replace(file.with_name(file.name + ".skipped"))
        checksum_path(file).unlink(missing_ok=True)


def move_run_aside(run_dir: Path) -> None:
    """Rename a run directory that has checkpoints to the first free RUN_DIR.1, RUN_DIR.2, ..."""
    if not newest_checkpoint(run_dir):
        return
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(aside)
    print(f"the earlier run is now in {aside}")
