"""Images as tensors in [-1, 1], and the order in which batches are served.

    data = DiffSet(train=True, dataset_name="FashionMNIST")
    data[0]                                    # float32 (1,32,32) in [-1, 1]
    for x, y in Batches(data, batch_size=128, seed=0):
        ...                                    # x (128,1,32,32), y (128,)

A dataset is "mnist", "fashionmnist", "cifar10", "shapes", a folder of images or an .npz file, or a
folder of pairs of images for an image-conditional model. Downloads and folders are decoded once
into an .npz file in `root` and read from there afterwards; its layout is described in
image_data/dataset_files.py. Uncompressed images of more than a GiB are not loaded into memory:
every batch is read from the file.

Letters in the shape columns: N images, B batch, C channels, H and W height and width.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from image_data import shapes
from image_data.downloads import DOWNLOADS, download
from image_data.fitting import DEFAULT_SIZE, read_fitted
from image_data.image_files import decode_folder
from image_data.mapped_images import Images, chunks
from image_data.pairs import INPUT, TARGET, check_pairs, joined
from image_data.prefetching import prefetched
from image_data.value_range import ValueRange
from runtime.image_size import Size, height_and_width
from runtime.randomness import Purpose
from runtime.suggestions import unknown_or_missing

NAMES = (*DOWNLOADS, "shapes")


def to_float(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest of 256 levels, clipped outside."""
    return (x * 127.5 + 127.5).round().clamp(0, 255).byte()


class DiffSet(torch.utils.data.Dataset):
    """The training or the test images of a dataset, as uint8: in memory, or memory-mapped if there
    are many.

    dataset_name: MNIST, FashionMNIST or CIFAR10 (downloaded by torchvision), shapes (generated), a
        folder of images (`class/image.png` or `image.png`), or an .npz file. Without test images,
        every tenth image, but at most 10,000, is held out for testing.
    image_size: (height, width), or one number for a square; by default 32, but the images' own size
        for an .npz file of images that are not square. 28x28 is padded with black to 32x32, except
        in a folder of images; all other sizes are resized and cropped to the centre.
    value_range: the pixel values of black and white, for a folder of images of more than 8 bits;
        by default determined from the values of all images.

    Raises ValueError or OSError with a one-line message.
    """

    images: Images  # uint8 (N,C,H,W)
    labels: Tensor  # int64 (N,)
    classes: tuple[str, ...]  # their names
    name: str
    size: Size
    original_size: tuple[int, int]  # in the .npz file; `size` for a folder and for shapes
    depth: int  # channels, 1 or 3
    paired: int = 0  # channels of a pair's input, which follow those of its target in `images`
    flip: bool  # whether mirroring an image gives a plausible image of the dataset
    padded: bool  # whether the images were padded from 28x28 to 32x32

    def __init__(
        self,
        train: bool,
        dataset_name: str,
        root: str = "data",
        image_size: Size | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        path = Path(dataset_name).expanduser()
        is_file = path.suffix == ".npz" and path.is_file()
        key = dataset_name.lower()
        in_root = path.parent in (Path(), Path(root))
        if path.suffix == ".npz" and path.stem.lower() in NAMES and (is_file or in_root):
            key = path.stem.lower()  # data/mnist.npz is mnist, even if it does not exist yet
        if key == "shapes" and not is_file:
            self.name, self.classes = key, shapes.KINDS
            self.flip = self.padded = False
            count, seed = (20_000, 0) if train else (2_000, 1)
            size = image_size or DEFAULT_SIZE
            self.images, self.labels = shapes.draw(count, size, seed)
            self.original_size = height_and_width(size)
        else:
            if is_file:
                self.name, file = path.stem, path
            elif key in DOWNLOADS:
                self.name, file = key, download(key, Path(root))
            elif path.is_dir():
                values = ValueRange.given(value_range) if value_range else None
                file = decode_folder(path, Path(root), image_size or DEFAULT_SIZE, values)
                self.name = path.resolve().name
            else:
                alternatives = ", a folder of images or an .npz file"
                raise ValueError(unknown_or_missing("dataset", dataset_name, NAMES, alternatives))
            known = DOWNLOADS.get(key)
            self.flip = known.flip if known else True
            names = known.classes if known else ()
            split = read_fitted(file, train, image_size, Path(root), names)
            self.images, self.labels, size = split.images, split.labels, split.size
            self.classes, self.padded = split.classes, split.padded
            self.original_size = split.original_size
        self.size, self.depth = size, self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return to_float(self.images[index])  # (C,H,W)

    def relabel(self, labels: Tensor, classes: tuple[str, ...]) -> None:
        """Replace the labels (N,) and the names of the classes."""
        self.labels, self.classes = labels, classes

    def digest(self) -> str:
        """A hash of the images. A resumed run must have the same images."""
        digest = hashlib.sha256()
        for chunk in chunks(self.images):
            digest.update(chunk.numpy().tobytes())
        return digest.hexdigest()[:16]

    def subset(self, count: int | None = None) -> Tensor:
        """Indices (count,) of a fixed random subset of the images; of all images if count is None.

        It is random because the first images of a folder all have the same class. A smaller subset
        is the beginning of a larger one.
        """
        random = np.random.default_rng((0, Purpose.SUBSET))
        return torch.from_numpy(random.permutation(len(self))[:count])


class PairedSet(DiffSet):
    """The training or the test images of a folder of pairs, see `image_data.pairs`.

    `images` has the channels of the target, then those of the input; both are resized and cropped
    in the same way. Raises ValueError or OSError with a one-line message.
    """

    def __init__(
        self,
        train: bool,
        folder: str,
        root: str = "data",
        image_size: Size | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        path = Path(folder).expanduser()
        check_pairs(path)
        target, given = (
            DiffSet(train, str(path / part), root, image_size, value_range)
            for part in (TARGET, INPUT)
        )
        self.images, self.labels = joined(target.images, given.images), target.labels
        self.classes, self.name = target.classes, path.resolve().name
        self.size, self.original_size = target.size, target.original_size
        self.depth, self.paired = target.depth, given.depth
        self.flip, self.padded = True, False


def load_dataset(
    train: bool,
    name: str,
    root: str = "data",
    image_size: Size | None = None,
    value_range: tuple[float, float] | None = None,
    condition: str = "",
) -> DiffSet:
    """A `PairedSet` for the condition "pairs", and a `DiffSet` for all others. Raises ValueError or
    OSError with a one-line message."""
    kind = PairedSet if condition == "pairs" else DiffSet
    return kind(train, name, root, image_size, value_range)


class Batches:
    """Batches of a `DiffSet` on `device`: x float32 (B,C,H,W) in [-1, 1] and labels y (B,).

    For training (`shuffle`), epoch e is a permutation of the images seeded by (seed, e); the last,
    incomplete batch is dropped. `flip` mirrors each image with probability 1/2. Without `shuffle`,
    the first `limit` images are served in order, and the last batch may be smaller. The images are
    kept on the device as uint8, so a step copies nothing from the host. Memory-mapped images are
    prefetched by a thread instead.

    With several processes (`rank` of `world_size`), each gets an equal share of every training
    batch. Without `shuffle` the processes take turns; all get the same number of batches, of which
    some may be empty.

    `state_dict` is the position (epoch, batch) after the last batch served. It is the same in every
    process. After `load_state_dict`, iteration continues there.

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
        self.device = torch.device(device)
        self.images = data.images
        if isinstance(self.images, Tensor):
            self.images = self.images[: self.count].to(device)
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
        """This process's share of every remaining batch of the current epoch, in random order."""
        random = np.random.default_rng((self.seed, Purpose.ORDER, self.epoch))
        order = torch.from_numpy(random.permutation(self.count))  # (N,)
        mirrored = torch.from_numpy(random.random(self.count) < 0.5).to(self.device)  # (N,)
        share = self.batch_size // self.world_size
        first = self.rank * share
        starts = [batch * self.batch_size + first for batch in range(self.batch, len(self))]
        for batch, (chosen, images) in enumerate(self.read(order, starts, share), self.batch):
            x = to_float(images)  # (B,C,H,W)
            if self.flip:
                x = torch.where(mirrored[chosen, None, None, None], x.flip(3), x)
            self.batch = batch + 1
            if self.batch == len(self):
                self.epoch, self.batch = self.epoch + 1, 0
            yield x, self.labels[chosen]

    def ordered_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `world_size`-th batch of the images in order."""
        batches = [batch * self.world_size + self.rank for batch in range(len(self))]
        starts = [batch * self.batch_size for batch in batches]
        for chosen, images in self.read(torch.arange(self.count), starts, self.batch_size):
            yield to_float(images), self.labels[chosen]

    def read(self, order: Tensor, starts: list[int], count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each start, yield `order[start : start + count]`, indices (B,), and the images with
        these indices, uint8 (B,C,H,W). order: indices (N,)."""
        if isinstance(self.images, Tensor):
            order = order.to(self.device)
            for start in starts:
                chosen = order[start : start + count]
                yield chosen, self.images[chosen]
            return
        parts = (order[start : start + count] for start in starts)
        with contextlib.closing(prefetched(self.fetch, parts)) as fetched:
            for chosen, images in fetched:
                yield (
                    chosen.to(self.device, non_blocking=True),
                    images.to(self.device, non_blocking=True),
                )

    def fetch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Read memory-mapped images from the file, in pinned memory if the device is a GPU."""
        images = self.images[chosen]
        if self.device.type == "cuda":  # copies of pinned memory overlap with computation
            return chosen.pin_memory(), images.pin_memory()
        return chosen, images

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at this position. Raises ValueError if it is beyond the end of an epoch."""
        if not 0 <= state["batch"] < len(self):
            raise ValueError(f"position {state} is outside of {len(self)} batches an epoch")
        self.epoch, self.batch = state["epoch"], state["batch"]
