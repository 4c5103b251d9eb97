"""Files written with torch.save."""

import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY
from training_runs import fit

import train
from checkpoints import checkpoint_file
from checkpoints.checkpoint_file import (
    DamagedFile,
    checksum_path,
    read_checkpoint_file,
    sha256_of,
    write_torch_file,
)
from checkpoints.run_dir import list_checkpoints


def test_the_file_is_that_of_torch_and_its_sha256_is_returned(tmp_path):
    file, weights = tmp_path / "x.pt", {"w": torch.arange(5.0)}
    assert write_torch_file(weights, file) == sha256_of(file)
    assert torch.equal(torch.load(file, weights_only=True)["w"], weights["w"])


def test_a_full_disk_is_an_os_error():
    """torch.save itself raises a RuntimeError that does not name the reason."""
    with pytest.raises(OSError, match="No space left") as error:
        write_torch_file({"w": torch.zeros(100_000)}, Path("/dev/full"))
    assert error.value.errno == errno.ENOSPC


def fail_to_open(monkeypatch, number: int, name: str = "") -> None:
    """Raise this error when a checkpoint is opened whose file name contains `name`."""
    original = checkpoint_file.refuse_compressed

    def fails(file):
        if name in file.name:
            raise OSError(number, os.strerror(number), str(file))
        original(file)

    monkeypatch.setattr(checkpoint_file, "refuse_compressed", fails)


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    write_torch_file({"w": torch.zeros(3)}, tmp_path / "x.ckpt")
    fail_to_open(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        read_checkpoint_file(tmp_path / "x.ckpt")
    fail_to_open(monkeypatch, errno.EINVAL)  # zipfile seeks to a negative offset in a damaged file
    with pytest.raises(DamagedFile, match="or is damaged"):
        read_checkpoint_file(tmp_path / "x.ckpt")


def test_a_checkpoint_that_cannot_be_read_is_not_set_aside(
    tiny_data, tmp_path, monkeypatch, refused
):
    """A run does not resume from an older one, as it would if the newest were damaged."""
    run_dir = tmp_path / "run"
    fit(tiny_data, run_dir, "--max-steps", 4, "--save-every", 2)
    files = list_checkpoints(run_dir)
    assert len(files) == 2
    for file in files:
        checksum_path(file).unlink()
    words = ["--dataset", tiny_data, "--run-dir", run_dir, *TINY, "--max-steps", 6]
    with monkeypatch.context() as patched:
        fail_to_open(patched, errno.EACCES, files[0].name)
        assert "Permission denied" in refused(train.main, *words)
    assert list_checkpoints(run_dir) == files
