"""Progress bars on standard error: often redrawn in a terminal, rarely in a log file.

for batch in progress_bar(batches, "features", unit=" batches"): ...
"""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL_PAUSE = 0.5  # seconds between two updates
LOG_PAUSE = 60.0


def progress_bar(iterable: Iterable[Any] | None = None, title: str = "", **options: Any) -> tqdm:
    """tqdm's bar over `iterable`, or, without `iterable`, a bar that the caller updates.

    options: those of tqdm.
    """
    pause = TERMINAL_PAUSE if sys.stderr.isatty() else LOG_PAUSE
    return tqdm(iterable, title, mininterval=pause, **options)
