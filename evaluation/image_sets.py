"""Images from a file or a folder, padded or converted to match the images they are compared with.

    samples = load_image_set(Path("generated.npz"))
    samples = fit_to_dataset(samples, train_set)
    samples, reference = fit_to_each_other(samples, reference)

Nothing is resized or cropped, because that changes every distance. Only 28x28 images are padded to
32x32 with black, if the images of the dataset were padded too.

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Dataset import DiffSet
from evaluation.features import NAMES
from image_data.sample_files import read_samples
from runtime.randomness import Purpose

MIN_IMAGES = 4
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class ImageSet:
    """Images in random order, because the first ones in a folder are often of the same class."""

    path: Path
    images: Tensor  # uint8 (N,C,H,W)
    labels: Tensor | None = None  # int64 (N,)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """The name of the file or folder, without a suffix."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    @property
    def size(self) -> str:
        return f"{self.images.shape[2]}x{self.images.shape[3]}"

    def digest(self) -> str:
        """A hash of the images."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()[:16]


def picture_name(features: str) -> str:
    """The name of the PNG file that shows the nearest images."""
    return f"nearest-{features}.png"


def is_result(file: Path) -> bool:
    """Whether an image file was written by an earlier evaluation and is not a sample."""
    pictures = [picture_name(features) for features in NAMES]
    return file.name in pictures and (file.parent / METRICS_FILE).is_file()


def load_image_set(path: Path) -> ImageSet:
    """Read a folder of images or an .npz file. Raises ValueError with a one-line message."""
    files = read_samples(path, skip=is_result)
    count = len(files.images)
    if count < MIN_IMAGES:
        raise ValueError(f"{path} has {count} images: at least {MIN_IMAGES} are needed")
    order = np.random.default_rng((0, Purpose.SUBSET)).permutation(count)
    images = files.images[order].transpose(0, 3, 1, 2)
    labels = None if files.labels is None else torch.from_numpy(files.labels[order])
    return ImageSet(path, torch.from_numpy(np.ascontiguousarray(images)), labels)


def fit_to_dataset(samples: ImageSet, data: DiffSet) -> ImageSet:
    """Return the samples with the size and channels of a dataset.

    If a label does not exist in the dataset, all labels are dropped. Raises ValueError with a
    one-line message.
    """
    if data.padded and samples.size == "28x28":
        samples = replace(samples, images=F.pad(samples.images, (2, 2, 2, 2)))
    size = f"{data.images.shape[2]}x{data.images.shape[3]}"
    if samples.size != size:
        raise ValueError(
            f"{samples.path} has images of {samples.size}, and {data.name} of {size}: "
            f"write the samples in {size}"
        )
    samples = with_channels(samples, data.depth, data.name)
    if samples.labels is not None and int(samples.labels.max()) >= len(data.classes):
        samples = replace(samples, labels=None)
    return samples


def fit_to_each_other(samples: ImageSet, reference: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return both sets with the same channels. Raises ValueError with a one-line message."""
    if samples.size != reference.size:
        raise ValueError(
            f"{samples.path} has images of {samples.size}, and {reference.path} of "
            f"{reference.size}: write both in one size"
        )
    depth = min(samples.images.shape[1], reference.images.shape[1])
    return (
        with_channels(samples, depth, str(reference.path)),
        with_channels(reference, depth, str(samples.path)),
    )


def with_channels(samples: ImageSet, depth: int, other: str) -> ImageSet:
    """Return the samples with `depth` channels: RGB images without colours become gray.

    Raises ValueError if they have colours or too few channels. other: the set that has `depth`
    channels, for the message.
    """
    images = samples.images
    if images.shape[1] == depth:
        return samples
    if depth == 1 and (images == images[:, :1]).all():
        return replace(samples, images=images[:, :1].contiguous())
    kinds = {1: "gray", 3: "RGB"}
    raise ValueError(
        f"{samples.path} has {kinds[images.shape[1]]} images, and {other} has {kinds[depth]} ones: "
        f"write them as {kinds[depth]}"
    )
