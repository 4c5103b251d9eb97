"""A file is complete or does not exist."""

import errno
import os
import subprocess
import sys

import pytest

from runtime.atomic_file import HOST, complete_file, remove_temporaries


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new folder" / "grid.png"
    with complete_file(path) as temporary:
        temporary.write_text("complete")
        assert temporary.suffix == ".png"
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]
    assert path.read_text() == "complete"


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_after_an_error_the_older_file_is_as_it_was(tmp_path, error):
    path = tmp_path / "grid.png"
    path.write_text("older")

    def write():
        with complete_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
    assert path.read_text() == "older"


def test_an_error_without_a_file_gets_the_name(tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(OSError, match="No space left") as error, complete_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(path)


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        "killed": f".grid.tmp.{HOST}.{ended.pid}.png",
        "running": f".grid.tmp.{HOST}.{os.getppid()}.png",
        "elsewhere": f".grid.tmp.another-host.{ended.pid}.png",
    }
    for name in names.values():
        (tmp_path / name).touch()
    with complete_file(tmp_path / "grid.png") as temporary:
        temporary.touch()
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"grid.png", names["running"], names["elsewhere"]}
    remove_temporaries(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
