"""The layout of a dataset in an .npz file, and its checks.

    split = read_split(Path("data/cifar10.npz"), train=True)      # split.images, .labels, .classes

The file holds `train_images` uint8 (N,H,W,C) with 1 or 3 channels, `train_labels` integers (N,),
`test_images`, `test_labels`, and `classes`, the names of the classes. Only `train_images`, or
`arr_0` instead, is required. Without test images, every tenth image, but at most 10,000, is held
out for testing.

An uncompressed array of more than `mapped_images.MAX_BYTES_IN_MEMORY` is memory-mapped, not read.

Letters in the shape columns: N images of a split, M in the file, H and W height and width,
C channels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from image_data import mapped_images
from image_data.mapped_images import map_of
from image_data.npz_files import NpzError, is_image_array, read_npz
from runtime.messages import one_line

MAX_LABEL = 99_999


@dataclass(frozen=True)
class Split:
    """The training or the test images of a dataset.

    rows: the indices (N,) of the split's images, if `images` is a mapped array that also holds
    others; otherwise None.
    """

    images: np.ndarray  # uint8 (N,H,W,C), or (M,H,W,C) if `rows` selects N of M images
    labels: np.ndarray  # int64 (N,)
    classes: tuple[str, ...]
    rows: np.ndarray | None = None

    @property
    def is_mapped(self) -> bool:
        return map_of(self.images) is not None


def read_split(file: Path, train: bool, classes: tuple[str, ...] = ()) -> Split:
    """Read the training or the test images.

    classes: names of the classes, which take precedence over those in the file. Raises ValueError
    with a one-line message if the file cannot be read or has another layout.
    """
    try:
        arrays = read_npz(file, map_above=mapped_images.MAX_BYTES_IN_MEMORY)
    except (FileNotFoundError, NpzError) as error:
        raise ValueError(
            f"{file} cannot be read as an .npz file ({one_line(error)}): "
            "remove it, or replace it with an intact file"
        ) from None
    held_out = "test_images" not in arrays
    prefix = "train" if train or held_out else "test"
    images, labels = checked_arrays(arrays, prefix, file)
    rows = None
    if held_out and len(images) > 1:
        test = held_out_mask(len(images))
        rows = np.flatnonzero(~test if train else test)
        labels = labels[rows]
        if map_of(images) is None:
            images, rows = images[rows], None
    if labels.max() > MAX_LABEL:
        raise ValueError(f"{file}: label {labels.max()} is too large: number the classes from 0")
    classes = classes or class_names(arrays, labels)
    if labels.max() >= len(classes):
        raise ValueError(
            f"{file}: label {labels.max()} has no name among the {len(classes)} classes"
        )
    return Split(images, labels.astype(np.int64), classes, rows)


def checked_arrays(
    arrays: dict[str, np.ndarray], prefix: str, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N,H,W,C) and labels (N,). Without labels in the file, all are 0. Raises
    ValueError, in one line."""
    images = arrays.get(f"{prefix}_images", arrays.get("arr_0"))
    if images is None or not is_image_array(images):
        contents = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items())
        raise ValueError(
            f"{file} must contain {prefix}_images, uint8 (N,H,W,1) or (N,H,W,3), "
            f"but it contains {contents or 'nothing'}"
        )
    labels = arrays.get(f"{prefix}_labels", np.zeros(len(images), np.int64))
    is_integer = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (len(images),) or not is_integer or labels.min() < 0:
        raise ValueError(
            f"{file}: {prefix}_labels must be {len(images)} whole numbers from 0, "
            f"not {labels.dtype} {labels.shape}"
        )
    return images, labels


def held_out_mask(count: int) -> np.ndarray:
    """Mask (N,) of the images held out for testing: every tenth, but at most 10,000 in all."""
    every = max(10, -(-count // 10_000))
    return np.arange(count) % every == min(every, count) - 1


def class_names(arrays: dict[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    """The class names in the file, or else the numbers from 0 to the largest label."""
    if "classes" in arrays:
        return tuple(map(str, np.atleast_1d(arrays["classes"])))
    largest = int(arrays.get("train_labels", labels).max())
    return tuple(map(str, range(1 + largest)))
