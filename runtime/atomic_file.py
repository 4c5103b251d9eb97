"""A file that appears is complete.

with complete_file("out/grid.png") as temporary: image.save(temporary)
"""

import contextlib
import glob
import os
import platform
from collections.abc import Iterator
from pathlib import Path

HERE = platform.node().replace(".", "_") or "host"


@contextlib.contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """Within the block: a temporary path beside `path`, with the same ending, its folder made. After it, that file is on
    the disk and has been renamed to `path`; after an error, a signal's too, it is gone and an older `path` is as it was.

    What a process of this machine left behind when it was killed while it wrote the same file is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = f".{path.stem}.tmp.{HERE}."
    for stale in path.parent.glob(f"{glob.escape(before)}*{glob.escape(path.suffix)}"):
        process = stale.name[len(before) :].removesuffix(path.suffix)
        if process.isdecimal() and not alive(int(process)):
            stale.unlink(missing_ok=True)
    temporary = path.with_name(f"{before}{os.getpid()}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk and not only in memory, where the file system can say so."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_temporaries(folder: Path) -> None:
    """Remove what was being written to `folder` when a process was killed; only where nobody else writes there now."""
    for stale in folder.glob(".*.tmp.*"):
        stale.unlink(missing_ok=True)
