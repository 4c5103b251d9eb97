"""Read and write .npz files.

    arrays = read_npz("data/mnist.npz")                           # every array in the file
    arrays = read_npz("samples.npz", ("arr_0",), ("arr_1",))      # a required and an optional array
    write_npz("samples.npz", arr_0=images)

Files may come from anywhere, so nothing in them is trusted: pickled objects are never loaded, and
callers check types and shapes (`is_image_array`) before they use an array.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from runtime.atomic_file import complete_file
from runtime.messages import one_line


class NpzError(ValueError):
    """An .npz file that cannot be read. `kind` is the type of the error that was raised."""

    def __init__(self, error: Exception):
        super().__init__(one_line(error))
        self.kind = type(error).__name__


def read_npz(
    path: str | Path, required: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read arrays by name; all of them if no names are given.

    Raises FileNotFoundError if the file does not exist, and NpzError if it is damaged, is not an
    .npz file, contains pickled objects or lacks a required array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if required is None:
                return dict(archive)
            present = [name for name in optional if name in archive]
            return {name: archive[name] for name in (*required, *present)}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise many types of errors for damaged files
        raise NpzError(error) from None


def is_image_array(array: np.ndarray, ndim: int = 4) -> bool:
    """Whether an array is uint8 (...,H,W,C), `ndim`-dimensional, not empty, C is 1 or 3."""
    if array.dtype != np.uint8 or array.ndim != ndim:
        return False
    return array.shape[-1] in (1, 3) and array.size > 0


def write_npz(path: str | Path, **arrays: ArrayLike) -> None:
    """Write arrays by name. The file appears when it is complete. Raises OSError."""
    converted: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    with complete_file(path) as temporary:
        np.savez(temporary, **converted)
