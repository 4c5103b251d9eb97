"""The layout of a dataset in an .npz file, and its checks.

    split = read_split(Path("data/cifar10.npz"), train=True)      # split.images, .labels, .classes

`train_images` uint8 (N,H,W,C) with 1 or 3 channels, `train_labels` integers (N,), `test_images`,
`test_labels`, and `classes`, their names. Only `train_images`, or `arr_0` in its place, must be
there. Without test images, every tenth image, 10,000 at most, is held out for testing.

An array of more than `mapped_images.IN_MEMORY` bytes is mapped, not read, unless it is compressed.
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

    rows: None where `images` has no others. A mapped array may have: then (N,) which of its images
    these are.
    """

    images: np.ndarray  # uint8 (N,H,W,C)
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
        arrays = read_npz(file, map_above=mapped_images.IN_MEMORY)
    except (FileNotFoundError, NpzError) as error:
        raise ValueError(
            f"{file} cannot be read as an .npz file ({one_line(error)}): "
            "remove it, or place it anew"
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
    """Images uint8 (N,H,W,C) and labels (N,); labels that are missing are 0."""
    images = arrays.get(f"{prefix}_images", arrays.get("arr_0"))
    if images is None or not is_image_array(images):
        contents = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items())
        raise ValueError(
            f"{file} must hold {prefix}_images, uint8 (N,H,W,1) or (N,H,W,3), "
            f"and holds {contents or 'nothing'}"
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
    """Which images (N,) are for testing: every tenth, or fewer, so that they are 10,000 at most."""
    every = max(10, -(-count // 10_000))
    return np.arange(count) % every == min(every, count) - 1


def class_names(arrays: dict[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    """The names of the classes in the file; by default the numbers up to the largest label."""
    if "classes" in arrays:
        return tuple(map(str, np.atleast_1d(arrays["classes"])))
    largest = int(arrays.get("train_labels", labels).max())
    return tuple(map(str, range(1 + largest)))
