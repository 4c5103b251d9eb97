"""Files that appear complete or not at all.

with complete_file("out/grid.png") as temporary:
    image.save(temporary)
"""

import contextlib
import glob
import os
import platform
from collections.abc import Iterator
from pathlib import Path

HOST = platform.node().replace(".", "_") or "host"


@contextlib.contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; afterwards sync the file and rename it to `path`.

    Missing folders are created, and the temporary path has the suffix of `path`. After an error or
    a signal, the temporary file is removed, and so is the innermost folder if it is new and empty;
    an existing file at `path` is unchanged. Temporary files of the same `path` that killed
    processes have left on this host are removed first.
    """
    path = Path(path)
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.stem}.tmp.{HOST}."
    remove_temporaries_of_killed_processes(path, prefix)
    temporary = path.with_name(f"{prefix}{os.getpid()}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if not error.filename:  # the error of a full disk does not name the file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if is_new_folder:
            with contextlib.suppress(OSError):  # raised if it is not empty
                path.parent.rmdir()


def remove_temporaries_of_killed_processes(path: Path, prefix: str) -> None:
    """Remove files named `prefix` + process id + suffix of `path` if the process has ended."""
    for file in path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(path.suffix)}"):
        process = file.name[len(prefix) :].removesuffix(path.suffix)
        if process.isdecimal() and not is_running(int(process)):
            file.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk. Some file systems cannot sync folders."""
    errors = contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext()
    with errors:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_running(process: int) -> bool:
    """Return whether a process with this id runs on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_temporaries(folder: Path) -> None:
    """Remove all temporary files in `folder`. No other process may be writing there."""
    for file in folder.glob(".*.tmp.*"):
        file.unlink(missing_ok=True)
