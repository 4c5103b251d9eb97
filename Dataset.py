"""Images as tensors in [-1, 1], and the order in which batches are served.

    data = DiffSet(train=True, dataset_name="FashionMNIST")      # or "mnist", "cifar10", "shapes", a folder, an .npz file
    data[0]                                                      # float32 (1,32,32) in [-1, 1]
    for x, y in Batches(data, batch_size=128, seed=0): ...       # x (128,1,32,32), y (128,)

Every dataset except the procedural `shapes` is decoded once into `<root>/<name>.npz` and read from there afterwards:
`train_images` uint8 (N,H,W,C), `train_labels` (N,), `test_images`, `test_labels` and optionally `classes`.

Letters in the shape columns: N images, B batch, C channels, H and W height and width.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from image_data import shapes
from image_data.npz_files import NpzError, is_image_array, read_npz
from runtime.atomic_file import complete_file
from runtime.messages import one_line
from runtime.randomness import Purpose
from runtime.suggestions import unknown

NAMES = {"mnist": "MNIST", "fashionmnist": "FashionMNIST", "cifar10": "CIFAR10", "shapes": "shapes"}
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashionmnist": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle-boot",
    ),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "shapes": shapes.KINDS,
}


def to_float(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest of 256 levels; what lies beyond is cut off."""
    return (x * 127.5 + 127.5).round().clamp(0, 255).byte()


class DiffSet(torch.utils.data.Dataset):
    """One split of a dataset, all of it in memory as uint8.

    dataset_name: MNIST, FashionMNIST, CIFAR10 (downloaded by torchvision), shapes (drawn here), the path of a folder of
    images (`class/image.png` or flat) or of an `.npz` file. Folders and files without a test split keep every tenth
    image, 10,000 at most, for testing. image_size: height and width; 28 is padded to 32 with black, all else is resized
    and centre-cropped.

    .images uint8 (N,C,size,size), .labels int64 (N,), .classes names, .size, .depth (1 or 3), .flip: whether a mirrored
    image is as good as the original, .padded: whether 28 became 32, .name. Raises ValueError or OSError with a one-line message.
    """

    def __init__(self, train: bool, dataset_name: str, root: str = "data", image_size: int = 32):
        key = dataset_name.lower()
        path = Path(dataset_name).expanduser()
        if path.suffix == ".npz" and path.stem.lower() in NAMES:
            key = path.stem.lower()  # data/mnist.npz is mnist, wherever it lies
        if key == "shapes":
            self.images, self.labels = shapes.draw(
                20_000 if train else 2_000, image_size, seed=0 if train else 1
            )
            self.name, self.classes, self.flip, self.padded = key, shapes.KINDS, False, False
        else:
            if path.suffix == ".npz" and path.is_file():
                self.name, file = path.stem, path
            elif key in NAMES:
                self.name, file = key, npz_of_known(key, Path(root))
            elif path.is_dir():
                self.name, file = path.resolve().name, npz_of_folder(path, Path(root), image_size)
            else:
                raise ValueError(
                    unknown("dataset", dataset_name, NAMES, ", a folder of images or an .npz file")
                )
            try:
                arrays = read_npz(file)
            except (FileNotFoundError, NpzError) as error:
                raise ValueError(
                    f"{file} cannot be read as an .npz file ({one_line(error)}): "
                    "remove it, or place it anew"
                ) from None
            images, labels = split(arrays, train, file)
            self.padded = images.shape[1:3] == (28, 28) and image_size == 32
            self.images = torch.from_numpy(
                fit(images, image_size).transpose(0, 3, 1, 2).copy()
            )  # (N,C,size,size)
            self.labels = torch.from_numpy(labels.astype(np.int64))
            if labels.max() >= 100_000:
                raise ValueError(
                    f"{file}: label {labels.max()} is too large: number the classes from 0"
                )
            numbers = range(1 + int(arrays.get("train_labels", labels).max()))
            self.classes = CLASSES.get(key) or tuple(
                map(str, np.atleast_1d(arrays.get("classes", numbers)))
            )
            if labels.max() >= len(self.classes):
                raise ValueError(
                    f"{file}: label {labels.max()} has no name among the {len(self.classes)} classes"
                )
            self.flip = key not in ("mnist", "fashionmnist")
        self.size, self.depth = image_size, self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """A fingerprint of the images: a resumed run must go on with the same ones."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()[:16]

    def some(self, count: int | None = None) -> Tensor:
        """The numbers (n,) of `count` images, all by default, in an order drawn once and for all: those that come first in a folder
        are of one class."""
        return torch.from_numpy(
            np.random.default_rng((0, Purpose.SUBSET)).permutation(len(self))[:count]
        )

    def __getitem__(self, index: int) -> Tensor:
        return to_float(self.images[index])  # (C,size,size)


class Batches:
    """Batches of a `DiffSet`, without worker processes: x float32 (B,C,H,W) in [-1,1] and labels y (B,), on `device`.

    For training (`shuffle`), epoch e goes through the images in a permutation seeded by (seed, e) and drops what does
    not fill a batch; `flip` mirrors each image with probability 1/2, drawn with the permutation. Otherwise the first
    `limit` images come in their order, the last batch smaller. The images lie on the device as uint8, so a step moves
    nothing. Process `rank` of `world` is served its equal share of every training batch, and every `world`-th of the
    others; as many as every process, the last one empty where there are no more.

    `state_dict` is the position (epoch, batch) behind the last batch served, the same for every process. After
    `load_state_dict` the next pass goes on from there. Raises ValueError where a training batch does not fit in the
    dataset, or cannot be shared.
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
        world: int = 1,
    ):
        self.count = min(limit or len(data), len(data))
        if shuffle and batch_size % world:
            raise ValueError(
                f"batch size {batch_size} cannot be shared by {world} processes: choose a multiple of {world}"
            )
        if shuffle and batch_size > self.count:
            raise ValueError(
                f"batch size {batch_size} is more than the {self.count} images of {data.name}: "
                f"choose a batch size of {self.count} or less"
            )
        self.images, self.labels = (
            data.images[: self.count].to(device),
            data.labels[: self.count].to(device),
        )
        self.batch_size, self.seed, self.shuffle, self.flip = batch_size, seed, shuffle, flip
        self.rank, self.world = rank, world
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        """Batches an epoch, in this process."""
        return (
            self.count // self.batch_size
            if self.shuffle
            else -(-self.count // (self.batch_size * self.world))
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, mirror = torch.arange(self.count), torch.zeros(self.count, dtype=torch.bool)
        if self.shuffle:
            random = np.random.default_rng((self.seed, Purpose.ORDER, self.epoch))
            order = torch.from_numpy(random.permutation(self.count))  # (N,)
            mirror = torch.from_numpy(random.random(self.count) < 0.5)  # (N,)
        order, mirror = order.to(self.images.device), mirror.to(self.images.device)
        share = self.batch_size // self.world
        for batch in range(self.batch if self.shuffle else 0, len(self)):
            if self.shuffle:
                start = batch * self.batch_size + self.rank * share
                chosen = order[start : start + share]
            else:
                start = (batch * self.world + self.rank) * self.batch_size
                chosen = order[start : start + self.batch_size]
            x = to_float(self.images[chosen])  # (B,C,H,W)
            if self.flip:
                x = torch.where(mirror[chosen, None, None, None], x.flip(3), x)
            if self.shuffle:
                self.epoch, self.batch = (
                    (self.epoch, batch + 1) if batch + 1 < len(self) else (self.epoch + 1, 0)
                )
            yield x, self.labels[chosen]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not 0 <= state["batch"] < len(self):
            raise ValueError(f"position {state} is outside of {len(self)} batches an epoch")
        self.epoch, self.batch = state["epoch"], state["batch"]


# ---- from files to <root>/<name>.npz ------------------------------------------------------------------------------


def npz_of_known(key: str, root: Path) -> Path:
    """The .npz of MNIST, FashionMNIST or CIFAR10; where it is missing it is made, from torchvision's verified download."""
    file = root / f"{key}.npz"
    if not file.is_file():
        from torchvision import datasets  # slow to import, and not needed once the file is there

        try:
            make = getattr(datasets, NAMES[key])
            splits = {
                split: make(root, train=split == "train", download=True)
                for split in ("train", "test")
            }
        except Exception as error:  # torchvision raises whatever its download ran into: URLError, RuntimeError, ...
            where = (
                ""
                if key == "cifar10"
                else f", or the four *-ubyte files in {root / NAMES[key] / 'raw'}"
            )
            raise OSError(
                f"cannot download {NAMES[key]} ({one_line(error)}): place {file} there by hand "
                f"(train_images uint8 (N,H,W,C), train_labels, test_images, test_labels){where}"
            ) from None
        with complete_file(file) as temporary:
            np.savez(
                temporary,
                **{
                    f"{split}_{part}": array
                    for split, data in splits.items()
                    for part, array in {
                        "images": np.asarray(data.data).reshape(
                            len(data), *data.data.shape[1:3], -1
                        ),  # (N,H,W,C)
                        "labels": np.asarray(data.targets, dtype=np.int64),
                    }.items()
                },
            )
    return file


def npz_of_folder(folder: Path, root: Path, image_size: int) -> Path:
    """The .npz of a folder of images, decoded anew when a file in it was added, removed or changed."""
    known = Image.registered_extensions()
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in known and not p.name.startswith(".")
    )
    if not paths:
        raise ValueError(f"no image in {folder}: expected class/image.png or image.png")
    relative = [p.relative_to(folder) for p in paths]
    stamp = hashlib.sha256(
        repr(
            [(str(r), (s := p.stat()).st_size, s.st_mtime_ns) for r, p in zip(relative, paths)]
        ).encode()
    )
    file = root / f"{folder.resolve().name}-{image_size}-{stamp.hexdigest()[:8]}.npz"
    if not file.is_file():
        names = [r.parts[0] if len(r.parts) > 1 else "" for r in relative]
        classes = sorted(set(names))
        images = np.stack(
            [decode(p, image_size) for p in tqdm(paths, desc=f"decoding {folder}", unit=" images")]
        )
        if (images == images[..., :1]).all():
            images = images[..., :1]  # every image is gray: (N,H,W,1)
        with complete_file(file) as temporary:
            np.savez(
                temporary,
                train_images=images,
                train_labels=np.array([classes.index(n) for n in names], np.int64),
                classes=np.array(classes),
            )
    return file


def decode(path: Path, image_size: int) -> np.ndarray:
    """An image file -> uint8 (image_size, image_size, 3), resized and centre-cropped."""
    return np.asarray(
        ImageOps.fit(
            open_image(path).convert("RGB"), (image_size, image_size), Image.Resampling.LANCZOS
        )
    )


def open_image(path: str | Path) -> Image.Image:
    """An image file of any mode as RGB, or as L where its mode has no colour; upright; what is transparent becomes white;
    16 bits keep their full range. Raises ValueError, naming the file, where it cannot be read."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        gray = image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F"))
        if image.mode.startswith(("I", "F")):
            wide = np.asarray(image, dtype=np.float64)
            image = Image.fromarray(
                (wide * (255 / max(65535.0, wide.max()))).clip(0, 255).round().astype(np.uint8)
            )
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image.convert("L" if gray else "RGB")
    except FileNotFoundError:
        raise ValueError(f"no image at {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({one_line(error)}): repair or remove it"
        ) from None


def split(arrays: dict[str, np.ndarray], train: bool, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N,H,W,C) and labels (N,) of one split, checked."""
    held_out = "test_images" not in arrays
    prefix = "train" if train or held_out else "test"
    images = arrays.get(f"{prefix}_images", arrays.get("arr_0"))
    if images is None or not is_image_array(images):
        raise ValueError(
            f"{file} must hold {prefix}_images, uint8 (N,H,W,1) or (N,H,W,3), and holds "
            + (", ".join(f"{k} {v.dtype} {v.shape}" for k, v in arrays.items()) or "nothing")
        )
    labels = arrays.get(f"{prefix}_labels", np.zeros(len(images), np.int64))
    if (
        labels.shape != (len(images),)
        or not np.issubdtype(labels.dtype, np.integer)
        or labels.min() < 0
    ):
        raise ValueError(
            f"{file}: {prefix}_labels must be {len(images)} whole numbers from 0, not {labels.dtype} {labels.shape}"
        )
    if held_out and len(images) > 1:
        every = max(10, -(-len(images) // 10_000))
        test = np.arange(len(images)) % every == min(every, len(images)) - 1
        images, labels = (images[~test], labels[~test]) if train else (images[test], labels[test])
    return images, labels


def fit(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N,H,W,C) -> (N,size,size,C): 28 is padded to 32 with black; other sizes are resized and centre-cropped."""
    if images.shape[1:3] == (size, size):
        return images
    if images.shape[1:3] == (28, 28) and size == 32:
        return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    resized = [
        ImageOps.fit(Image.fromarray(i.squeeze()), (size, size), Image.Resampling.LANCZOS)
        for i in images
    ]
    return np.stack([np.asarray(i) for i in resized]).reshape(len(images), size, size, -1)
