"""A file that appears is complete.

    with complete_file("out/grid.png") as temporary: image.save(temporary)
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """Within the block: a temporary path beside `path`, with the same ending, its folder made. After it, that file has
    been renamed to `path`; after an error, a signal's too, it is gone and an older `path` is as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
