"""Checkpoint files: written atomically, with a sha256 file, and read without running any code.

step_00005000.ckpt    step_00005000.ckpt.sha256
"""

import errno
import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from runtime.atomic_file import complete_file
from runtime.pretrained import pretrained_names


class DamagedFile(ValueError):
    """A file is damaged or not a checkpoint; the message gives the reason in one line."""


def checksum_path(path: Path) -> Path:
    """The file beside a checkpoint with its sha256, in the format of `sha256sum --check`."""
    return path.with_name(path.name + ".sha256")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def no_checkpoint(path: str | Path) -> str:
    """The message for a path without a checkpoint."""
    return (
        f"no checkpoint at {path}: train one first, or give a file written by train.py, a run "
        f"directory, or a pretrained model: {', '.join(pretrained_names())}"
    )


def read_checkpoint_file(path: str | Path) -> Any:
    """Read a file that torch.save wrote, without running any code in it.

    The sha256 is verified if there is a checksum file. Raises FileNotFoundError or DamagedFile
    with a one-line message. Raises OSError if the file cannot be opened or read, which does not
    mean that it is damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(no_checkpoint(path))
    check_sha256(file)
    try:
        refuse_compressed(file)
        with warnings.catch_warnings():
            # torch warns about files that are not checkpoints, but the error below is enough
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zipfile and pickle raise many kinds for damaged files
        # zipfile seeks to a negative offset, which is EINVAL, if the file is damaged
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DamagedFile(
            f"{file} is not a checkpoint of this project, or is damaged ({type(error).__name__}): "
            "give a file written by train.py"
        ) from None


def check_sha256(file: Path) -> None:
    """Raise DamagedFile if the checksum file beside `file` does not match."""
    beside = checksum_path(file)
    if not beside.is_file():
        return
    if beside.read_text(errors="replace").split()[:1] != [sha256_of(file)]:
        raise DamagedFile(
            f"checkpoint {file} is damaged: its sha256 is not the one in {beside.name}"
        )


def refuse_compressed(file: Path) -> None:
    """Raise ValueError or BadZipFile unless `file` is an uncompressed zip archive.

    A compressed archive could unpack to any size. torch's older format is not a zip archive.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > file.stat().st_size or any(member.compress_type for member in members):
        raise ValueError


class HashingWriter:
    """A file writer that also computes the sha256 of the data.

    torch.save hides why a write failed: https://github.com/pytorch/pytorch/issues/121833 (seen in
    2.14.1). So the first error is kept in `error`, and later data are discarded.
    """

    def __init__(self, file: Any):
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

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


def write_torch_file(contents: Any, file: Path) -> str:
    """Write a file with torch.save and return its sha256. Raises OSError if writing fails."""
    with open(file, "wb") as opened:
        writer: Any = HashingWriter(opened)
        torch.save(contents, writer)
        if writer.error:
            raise writer.error
        opened.flush()
        os.fsync(opened.fileno())
    return writer.sha256.hexdigest()


class CompleteCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoints to a temporary file, add a `.sha256` file, then rename the
    temporary file.

    A checkpoint is therefore complete as soon as it exists. Loading returns `verified`, contents
    that have already been read and checked; no path or URL is opened.
    """

    def __init__(self, verified: dict[str, Any] | None = None):
        self.verified = verified

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        with complete_file(path) as temporary:
            sha256 = write_torch_file(checkpoint, temporary)
            # the checksum is written first, so that no checkpoint is ever without one
            with complete_file(checksum_path(path)) as beside:
                beside.write_text(f"{sha256}  {path.name}\n")

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        assert self.verified is not None
        return self.verified
