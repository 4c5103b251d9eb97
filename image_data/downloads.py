"""Datasets that torchvision downloads, decoded once into an .npz file.

    download("mnist", Path("data"))                  # data/mnist.npz

Letters in the shape columns: N images, H and W height and width, C channels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision import datasets

from image_data.npz_files import write_npz
from runtime.messages import one_line


@dataclass(frozen=True)
class Download:
    """A dataset of torchvision."""

    torchvision_name: str  # of the class in torchvision.datasets
    classes: tuple[str, ...]  # the names of the classes, in order
    flip: bool  # whether mirroring an image gives a plausible image of the dataset


DIGITS = tuple("0123456789")
FASHION = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
DOWNLOADS = {
    "mnist": Download("MNIST", DIGITS, flip=False),
    "fashionmnist": Download("FashionMNIST", tuple(FASHION.split()), flip=False),
    "cifar10": Download("CIFAR10", tuple(CIFAR10.split()), flip=True),
}


def download(key: str, root: Path) -> Path:
    """Return `<root>/<key>.npz`; if it is missing, create it from torchvision's verified download.

    Raises OSError with a one-line message if the download fails.
    """
    file = root / f"{key}.npz"
    if file.is_file():
        return file
    name = DOWNLOADS[key].torchvision_name
    arrays = {}
    try:
        for split in ("train", "test"):
            data = getattr(datasets, name)(root, train=split == "train", download=True)
            height, width = data.data.shape[1:3]
            images = np.asarray(data.data).reshape(len(data), height, width, -1)  # (N,H,W,C)
            arrays[f"{split}_images"] = images
            arrays[f"{split}_labels"] = np.asarray(data.targets, dtype=np.int64)
    except Exception as error:  # torchvision raises many types: URLError, RuntimeError, ...
        raw = root / name / "raw"
        alternative = "" if key == "cifar10" else f", or place the four *-ubyte files in {raw}"
        raise OSError(
            f"cannot download {name} ({one_line(error)}): create {file} by hand "
            f"(train_images uint8 (N,H,W,C), train_labels, test_images, test_labels){alternative}"
        ) from None
    write_npz(file, **arrays)
    return file
