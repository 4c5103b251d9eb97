"""Images of a dataset, fitted to a size: in memory, or memory-mapped if there are many.

    read_fitted(Path("data/cifar10.npz"), True, 128, Path("data")).images    # uint8 (N,C,128,128)

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from image_data import mapped_images
from image_data.dataset_files import Split, read_split
from image_data.image_files import fit_images
from image_data.mapped_images import Images, MappedImages
from image_data.npz_files import Parts, is_image_array, read_npz, write_npz
from runtime.image_size import Size, format_size, height_and_width, size_of
from runtime.messages import one_line

DEFAULT_SIZE = 32  # except for images of an .npz file that are not square
CHUNK = 500  # images that are fitted at once
FITTER = 1  # version of the fitting; raise it if the same file would give other pixels


@dataclass(frozen=True)
class FittedSplit:
    """The training or the test images of a dataset.

    original_size: height and width in the file. padded: whether 28x28 was padded to 32x32.
    """

    size: Size
    original_size: tuple[int, int]
    images: Images  # uint8 (N,C,H,W)
    labels: Tensor  # int64 (N,)
    classes: tuple[str, ...]
    padded: bool


def read_fitted(
    file: Path, train: bool, size: Size | None, root: Path, classes: tuple[str, ...] = ()
) -> FittedSplit:
    """Read the images of an .npz file and fit them to `size`, see `fit_images`.

    size: by default 32, or the images' own size if they are not square.

    Uncompressed images of more than `mapped_images.MAX_BYTES_IN_MEMORY` are memory-mapped. Images
    that are larger than that after fitting are fitted once, and written to a file in `root`. Raises
    ValueError as `read_split` does.
    """
    split = read_split(file, train, classes)
    _, height, width, _ = split.images.shape
    sides = (height, width)
    size = size or default_size(split.images)
    padded = sides == (28, 28) and size == 32
    if sides != height_and_width(size) and (fitted := fit_file(file, root, size)):
        split = read_split(fitted, train, classes)
    if split.is_mapped and split.images.shape[1:3] == height_and_width(size):
        images: Images = MappedImages(split.images, split.rows)
    else:
        images = torch.from_numpy(fit_split(split, size).transpose(0, 3, 1, 2).copy())
    return FittedSplit(size, sides, images, torch.from_numpy(split.labels), split.classes, padded)


def default_size(images: np.ndarray) -> Size:
    """The size to which images (N,H,W,C) are fitted by default."""
    size = size_of(*images.shape[1:3])
    return DEFAULT_SIZE if isinstance(size, int) else size


def fit_file(file: Path, root: Path, size: Size) -> Path | None:
    """Fit all images of an .npz file, write them to another file in `root`, and return its path.

    An existing file is reused. Returns None if the fitted images are small enough to be kept in
    memory. If the file cannot be written, this is reported, and None is returned as well.
    """
    arrays: dict[str, ArrayLike | Parts] = {}
    largest = 0
    for name, array in read_npz(file, map_above=mapped_images.MAX_BYTES_IN_MEMORY).items():
        arrays[name] = array
        if is_image_array(array):
            shape = (len(array), *height_and_width(size), array.shape[-1])
            title = f"fitting {name} of {file.name} to {format_size(size)}"
            arrays[name] = Parts(shape, fitted_parts(array, size, title))
            largest = max(largest, int(np.prod(shape, dtype=np.int64)))
    if largest <= mapped_images.MAX_BYTES_IN_MEMORY:
        return None
    stat = file.stat()
    made_from = (FITTER, str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    fingerprint = hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]
    fitted = root / f"{file.stem}-{format_size(size)}-{fingerprint}.npz"
    try:
        if not fitted.is_file():
            write_npz(fitted, **arrays)
    except OSError as error:
        tqdm.write(
            f"{fitted} cannot be written ({one_line(error)}): the images are kept in memory, "
            f"{largest / 2**30:.1f} GiB",
            sys.stderr,
        )
        return None
    return fitted


def fitted_parts(array: np.ndarray, size: Size, title: str) -> Iterator[np.ndarray]:
    """Fit uint8 (N,H,W,C) to a size, `CHUNK` images at a time."""
    with tqdm(total=len(array), desc=title, unit=" images") as progress:
        for start in range(0, len(array), CHUNK):
            part = fit_images(array[start : start + CHUNK], size)
            progress.update(len(part))
            yield part


def fit_split(split: Split, size: Size) -> np.ndarray:
    """Fit the images of a split: uint8 (N,H,W,C), in memory."""
    if not split.is_mapped:
        return fit_images(split.images, size)
    rows = np.arange(len(split.images)) if split.rows is None else split.rows
    starts = range(0, len(rows), CHUNK)
    chunks = [fit_images(split.images[rows[start : start + CHUNK]], size) for start in starts]
    return np.concatenate(chunks)
