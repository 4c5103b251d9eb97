"""Files written with torch.save."""

import errno
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint_file import sha256_of, write_torch_file


def test_the_file_is_that_of_torch_and_its_sha256_is_returned(tmp_path):
    file, weights = tmp_path / "x.pt", {"w": torch.arange(5.0)}
    assert write_torch_file(weights, file) == sha256_of(file)
    assert torch.equal(torch.load(file, weights_only=True)["w"], weights["w"])


def test_a_full_disk_is_an_os_error():
    """torch.save itself raises a RuntimeError that does not name the reason."""
    with pytest.raises(OSError, match="No space left") as error:
        write_torch_file({"w": torch.zeros(100_000)}, Path("/dev/full"))
    assert error.value.errno == errno.ENOSPC
