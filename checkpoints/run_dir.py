"""A run directory as files: its lock, its checkpoints, newest first, their checksums; each written whole.

    run/.lock  run/checkpoints/step_00005000.ckpt  run/checkpoints/step_00005000.ckpt.sha256

What a checkpoint holds, and whether to believe it, is Checkpoint's matter.
"""

import fcntl
import hashlib
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from runtime.atomic_file import complete_file, remove_temporaries


def newest_first(run_dir: str | Path, every: int = 1) -> list[Path]:
    """The checkpoints in a run directory, the one with the most steps first; those of every `every`-th step alone."""
    found = {
        path: path.stem.removeprefix("step_")
        for path in Path(run_dir).glob("checkpoints/step_*.ckpt")
    }
    steps = {path: int(number) for path, number in found.items() if number.isdecimal()}
    return sorted(
        (path for path, step in steps.items() if step % every == 0),
        key=lambda path: steps[path],
        reverse=True,
    )


def newest(run_dir: str | Path) -> Path | None:
    """The checkpoint with the most steps in a run directory, None where there is none. It may be damaged."""
    return next(iter(newest_first(run_dir)), None)


def settings(run_dir: Path) -> dict[str, Any]:
    """What config.json says of how it was trained: its "settings", and "preset"; nothing where it cannot be read."""
    try:
        config = json.loads((run_dir / "config.json").read_text())
        return {**config["settings"], "preset": config["preset"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def last(run_dir: Path) -> str:
    """For a last line: what is there to go on from."""
    return (
        f"the last checkpoint is {file}"
        if (file := newest(run_dir))
        else "there is no checkpoint yet"
    )


def checksum(path: Path) -> Path:
    """The file beside a checkpoint that holds its sha256, as `sha256sum --check` reads it."""
    return path.with_name(path.name + ".sha256")


def sha256(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        while part := opened.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def contents(path: str | Path) -> Any:
    """The contents of a checkpoint file, whose sha256 is checked where it lies beside it. No code in it is run.

    Raises FileNotFoundError or Damaged with a one-line message, and OSError where it cannot be read: that is no damage.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: give a file written by train.py, or a run directory"
        )
    if checksum(file).is_file() and checksum(file).read_text(errors="replace").split()[:1] != [
        sha256(file)
    ]:
        raise Damaged(
            f"checkpoint {file} is damaged: its sha256 is not the one in {checksum(file).name}"
        )
    try:
        with zipfile.ZipFile(
            file
        ) as archive:  # no few bytes that unpack to many, and not torch's older format
            parts = archive.infolist()
            if sum(part.file_size for part in parts) > file.stat().st_size or any(
                part.compress_type for part in parts
            ):
                raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch's remarks on foreign files: the one line below says it
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # whatever a reader of archives and pickles raises on bytes from anywhere
        raise Damaged(
            f"{file} is not a checkpoint of this project, or is damaged ({type(error).__name__}): "
            "give a file written by train.py"
        ) from None


class Damaged(ValueError):
    """A file that cannot be what it should be; the message says why, in one line."""


def claim(run_dir: Path) -> Any:
    """An open file that keeps other processes from training in `run_dir` as long as this one lives, None where there is no
    such folder. Raises ValueError where another has it, OSError where it cannot be written to."""
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
        remove_temporaries(folder)  # of a process that was killed
    return file


def keep_newest(run_dir: Path, count: int, every: int) -> None:
    """Remove all checkpoints but the newest `count` and the newest of those at every `every`-th step, to which a run that
    diverges goes back wherever it was stopped in between; and checksums without a file."""
    for old in set(newest_first(run_dir)[count:]) - set(newest_first(run_dir, every)[:1]):
        old.unlink()
    for alone in run_dir.glob("checkpoints/step_*.ckpt.sha256"):
        if not alone.with_suffix("").exists():
            alone.unlink()


class Hashing:
    """A file to write to that takes the sha256 of what it is given. torch.save hides the reason why a write fails: the
    first `error` is kept, and what comes after it dropped."""

    def __init__(self, file: Any):
        self.file, self.sha256, self.error = file, hashlib.sha256(), None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            if not self.error:
                self.file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        pass


class CompleteCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their place and renamed, so that a file that appears is complete, and a
    `.sha256` beside each. What is loaded is `verified`, the contents that were read and checked, never a path or URL."""

    def __init__(self, verified: dict[str, Any] | None = None):
        self.verified = verified

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        with complete_file(path) as temporary:
            with open(temporary, "wb") as file:
                hashing: Any = Hashing(file)
                torch.save(checkpoint, hashing)
                if hashing.error:
                    raise hashing.error
                file.flush()
                os.fsync(file.fileno())
            with complete_file(
                checksum(path)
            ) as beside:  # before the checkpoint appears: never one without
                beside.write_text(f"{hashing.sha256.hexdigest()}  {path.name}\n")

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        assert self.verified is not None
        return self.verified
