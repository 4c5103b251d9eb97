"""Images as tensors in [-1, 1], and the order in which batches are served.

    data = DiffSet(train=True, dataset_name="FashionMNIST")
    data[0]                                    # float32 (1,32,32) in [-1, 1]
    for x, y in Batches(data, batch_size=128, seed=0):
        ...                                    # x (128,1,32,32), y (128,)

A dataset is "mnist", "fashionmnist", "cifar10", "shapes", a folder of images or an .npz file. All
but "shapes" are decoded once into `<root>/<name>.npz` and read from there afterwards; the layout
of that file is described in image_data/dataset_files.py.

Letters in the shape columns: N images, B batch, C channels, H and W height and width.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from image_data import shapes
from image_data.dataset_files import read_split
from image_data.downloads import DOWNLOADS, download
from image_data.image_files import decode_folder, fit_images
from image_data.value_range import ValueRange
from runtime.randomness import Purpose
from runtime.suggestions import unknown

NAMES = (*DOWNLOADS, "shapes")


def to_float(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest of 256 levels, clipped outside."""
    return (x * 127.5 + 127.5).round().clamp(0, 255).byte()


class DiffSet(torch.utils.data.Dataset):
    """The training or the test images of a dataset, in memory as uint8.

    dataset_name: MNIST, FashionMNIST or CIFAR10 (downloaded by torchvision), shapes (generated), a
        folder of images (`class/image.png` or `image.png`), or an .npz file. Folders and files
        without test images keep every tenth image, 10,000 at most, for testing.
    image_size: height and width. 28x28 is padded with black to 32x32; other sizes are resized and
        cropped to the centre.
    value_range: the values of black and white in a folder of images of more than 8 bits; by
        default found in all of them.

    Raises ValueError or OSError with a one-line message.
    """

    images: Tensor  # uint8 (N,C,size,size)
    labels: Tensor  # int64 (N,)
    classes: tuple[str, ...]  # their names
    name: str
    size: int
    original_size: tuple[int, int]  # height and width before an image_size was applied
    depth: int  # channels, 1 or 3
    flip: bool  # whether a mirrored image could be in the dataset as well
    padded: bool  # whether the images were padded from 28x28 to 32x32

    def __init__(
        self,
        train: bool,
        dataset_name: str,
        root: str = "data",
        image_size: int = 32,
        value_range: tuple[float, float] | None = None,
    ):
        path = Path(dataset_name).expanduser()
        key = dataset_name.lower()
        if path.suffix == ".npz" and path.stem.lower() in NAMES:
            key = path.stem.lower()  # data/mnist.npz is mnist, in any folder
        if key == "shapes":
            self.name, self.classes = key, shapes.KINDS
            self.flip = self.padded = False
            self.original_size = (image_size, image_size)
            count, seed = (20_000, 0) if train else (2_000, 1)
            self.images, self.labels = shapes.draw(count, image_size, seed)
        else:
            if path.suffix == ".npz" and path.is_file():
                self.name, file = path.stem, path
            elif key in DOWNLOADS:
                self.name, file = key, download(key, Path(root))
            elif path.is_dir():
                values = ValueRange.given(value_range) if value_range else None
                file = decode_folder(path, Path(root), image_size, values)
                self.name = path.resolve().name
            else:
                alternatives = ", a folder of images or an .npz file"
                raise ValueError(unknown("dataset", dataset_name, NAMES, alternatives))
            known = DOWNLOADS.get(key)
            split = read_split(file, train, known.classes if known else ())
            self.classes = split.classes
            self.flip = known.flip if known else True
            self.original_size = split.images.shape[1:3]
            self.padded = self.original_size == (28, 28) and image_size == 32
            images = fit_images(split.images, image_size).transpose(0, 3, 1, 2)
            self.images = torch.from_numpy(images.copy())
            self.labels = torch.from_numpy(split.labels)
        self.size, self.depth = image_size, self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return to_float(self.images[index])  # (C,size,size)

    def digest(self) -> str:
        """A fingerprint of the images: a resumed run must have the same ones."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()[:16]

    def subset(self, count: int | None = None) -> Tensor:
        """Indices (count,) of a random subset of the images, always the same one; None for all.

        Random, because the first images of a folder are all of one class. A smaller subset is the
        beginning of a larger one.
        """
        random = np.random.default_rng((0, Purpose.SUBSET))
        return torch.from_numpy(random.permutation(len(self))[:count])


class Batches:
    """Batches of a `DiffSet` on `device`: x float32 (B,C,H,W) in [-1, 1] and labels y (B,).

    For training (`shuffle`), epoch e is a permutation of the images seeded by (seed, e), without
    the images that do not fill a batch. `flip` mirrors each image with probability 1/2. Without
    `shuffle`, the first `limit` images are served in their order, and the last batch is smaller.
    The images are kept on the device as uint8, so a step copies nothing from memory to the device.

    Of several processes (`rank` of `world_size`), each gets its equal share of every training
    batch. Without `shuffle` the processes take batches in turn; all get the same number, some
    empty.

    `state_dict` is the position (epoch, batch) after the last batch served, the same in every
    process; after `load_state_dict`, iteration continues there.

    Raises ValueError if a training batch is larger than the dataset or cannot be divided by the
    number of processes.
    """

    def __init__(
        self,
        data: DiffSet,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        flip: bool = False,
        limit: int | None = None,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        self.count = min(limit or len(data), len(data))
        if shuffle and batch_size % world_size:
            raise ValueError(
                f"batch size {batch_size} cannot be shared by {world_size} processes: "
                f"choose a multiple of {world_size}"
            )
        if shuffle and batch_size > self.count:
            raise ValueError(
                f"batch size {batch_size} is more than the {self.count} images of {data.name}: "
                f"choose a batch size of {self.count} or less"
            )
        self.images = data.images[: self.count].to(device)
        self.labels = data.labels[: self.count].to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.flip = flip
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        """Batches per epoch, in this process."""
        if self.shuffle:
            return self.count // self.batch_size
        return -(-self.count // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.training_batches() if self.shuffle else self.ordered_batches()

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the current epoch, in random order; this process's share of every batch."""
        device = self.images.device
        random = np.random.default_rng((self.seed, Purpose.ORDER, self.epoch))
        order = torch.from_numpy(random.permutation(self.count)).to(device)  # (N,)
        mirrored = torch.from_numpy(random.random(self.count) < 0.5).to(device)  # (N,)
        share = self.batch_size // self.world_size
        for batch in range(self.batch, len(self)):
            start = batch * self.batch_size + self.rank * share
            chosen = order[start : start + share]
            x = to_float(self.images[chosen])  # (B,C,H,W)
            if self.flip:
                x = torch.where(mirrored[chosen, None, None, None], x.flip(3), x)
            self.batch = batch + 1
            if self.batch == len(self):
                self.epoch, self.batch = self.epoch + 1, 0
            yield x, self.labels[chosen]

    def ordered_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, every `world_size`-th batch."""
        order = torch.arange(self.count, device=self.images.device)
        for batch in range(len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            chosen = order[start : start + self.batch_size]
            yield to_float(self.images[chosen]), self.labels[chosen]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not 0 <= state["batch"] < len(self):
            raise ValueError(f"position {state} is outside of {len(self)} batches an epoch")
        self.epoch, self.batch = state["epoch"], state["batch"]
