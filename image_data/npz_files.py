"""Read and write .npz files.

    arrays = read_npz("data/mnist.npz")                           # every array in the file
    arrays = read_npz("samples.npz", ("arr_0",), ("arr_1",))      # a required and an optional array
    arrays = read_npz("photos.npz", map_above=2**30)              # large images stay in the file
    write_npz("samples.npz", arr_0=images)
    write_npz("photos.npz", train_images=Parts(shape, parts))     # one part in memory at a time

Files may come from untrusted sources: pickled objects are never loaded, and callers check types
and shapes (`is_image_array`) before they use an array.
"""

import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import ArrayLike

from image_data.mapped_images import map_member
from runtime.atomic_file import complete_file
from runtime.messages import one_line


class NpzError(ValueError):
    """An .npz file cannot be read. `kind` is the name of the original error's type."""

    def __init__(self, error: Exception):
        super().__init__(one_line(error))
        self.kind = type(error).__name__


@dataclass(frozen=True)
class Parts:
    """A uint8 array of this shape, given as consecutive parts along its first axis."""

    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def read_npz(
    path: str | Path,
    required: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    map_above: float = math.inf,
) -> dict[str, np.ndarray]:
    """Read arrays by name, or all arrays if no names are given.

    map_above: uncompressed uint8 arrays of more bytes are memory-mapped, not read.

    Raises FileNotFoundError if the file does not exist, and NpzError if it is damaged, is not an
    .npz file, lacks a required array, or an array to be read contains pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive)
            if required is not None:
                names = [*required, *(name for name in optional if name in archive)]
            return {name: read_member(Path(path), archive, name, map_above) for name in names}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise many types of errors for damaged files
        raise NpzError(error) from None


def read_member(
    file: Path, archive: np.lib.npyio.NpzFile, name: str, map_above: float
) -> np.ndarray:
    """Read or map one array."""
    member = archive.zip.NameToInfo.get(f"{name}.npy") if archive.zip else None
    if member and member.file_size > map_above:
        mapped = map_member(file, member)
        if mapped is not None:
            return mapped
    return archive[name]


def is_image_array(array: np.ndarray, ndim: int = 4) -> bool:
    """Whether an array is uint8 (...,H,W,C) of `ndim` dimensions, not empty, with C = 1 or 3."""
    if array.dtype != np.uint8 or array.ndim != ndim:
        return False
    return array.shape[-1] in (1, 3) and array.size > 0


def write_npz(path: str | Path, /, **arrays: ArrayLike | Parts) -> None:
    """Write arrays by name. The file appears only when it is complete. Raises OSError."""
    with complete_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, Parts):
                    write_parts(member, array)
                else:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def write_parts(member: IO[bytes], array: Parts) -> None:
    """Write an array in NumPy's format, part by part."""
    header = {"descr": "|u1", "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(member, header)
    count = 0
    for part in array.parts:
        assert part.dtype == np.uint8
        assert part.shape[1:] == array.shape[1:]
        member.write(part.tobytes())
        count += len(part)
    assert count == array.shape[0]
