"""Image files as uint8 arrays.

    open_image("photo.jpg")                              # a PIL image, RGB or L
    decode_folder(Path("photos"), Path("data"), 32)      # data/photos-32-1a2b3c4d.npz

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import contextlib
import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from image_data.npz_files import Parts, write_npz
from image_data.value_range import ValueRange, choose_range, find_range, is_deep
from runtime.image_size import Size, format_size, height_and_width
from runtime.messages import one_line

DECODER = 2  # version of the decoding; raise it if the same files would give other pixels
COLOUR_CHECKS = 16  # images of a folder that are checked for colour before it is decoded


def open_image(
    path: str | Path, values: ValueRange | None = None, remedy: str = "replace or remove it"
) -> Image.Image:
    """Read an image file of any mode as RGB, or as L if its mode has no colour.

    The image is rotated as its EXIF data say. Transparent pixels become white. values: the range of
    an image of more than 8 bits, by default found in this image. Raises ValueError with the file's
    name and the remedy if it cannot be read.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        gray = image.mode in ("1", "L", "LA") or is_deep(image)
        if is_deep(image):
            values = values or choose_range([image])
            assert values
            image = Image.fromarray(values.to_8_bits(image))
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image.convert("L" if gray else "RGB")
    except FileNotFoundError:
        raise ValueError(f"no image at {path}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that can be read: {remedy}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} is not an image that can be read ({one_line(error)}): {remedy}"
        ) from None


def resize_and_crop(picture: Image.Image, size: Size) -> Image.Image:
    """Resize a picture so that it just covers the size, and crop it to the centre."""
    height, width = height_and_width(size)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def decode_image(path: Path, size: Size, values: ValueRange | None = None) -> np.ndarray:
    """Read an image file as uint8 (H,W,3), resized and cropped to the centre."""
    return np.asarray(resize_and_crop(open_image(path, values).convert("RGB"), size))


def fit_images(images: np.ndarray, size: Size) -> np.ndarray:
    """Fit uint8 (N,H,W,C) to a size.

    28x28 is padded with black to 32x32. Other sizes are resized and cropped to the centre.
    """
    if images.shape[1:3] == height_and_width(size):
        return images
    if images.shape[1:3] == (28, 28) and size == 32:
        return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    pictures = (Image.fromarray(squeezed(image)) for image in images)
    resized = np.stack([np.asarray(resize_and_crop(picture, size)) for picture in pictures])
    return resized.reshape(len(images), *height_and_width(size), -1)


def squeezed(image: np.ndarray) -> np.ndarray:
    """An image (H,W,C) in the shape that PIL expects: (H,W) if it has one channel."""
    return image[..., 0] if image.shape[2] == 1 else image


def decode_folder(
    folder: Path, root: Path, image_size: Size, values: ValueRange | None = None
) -> Path:
    """Decode a folder of images into an .npz file in `root`, unless that file exists.

    The file's name contains a hash of the names, sizes and times of all images, so the folder is
    decoded again after a change. The class of an image is the name of its subfolder.

    values: the range of images of more than 8 bits, by default determined from all images. Raises
    ValueError if the folder has no image, an image cannot be read or the range cannot be found, and
    OSError if the file cannot be written. The messages have one line.
    """
    paths = image_paths(folder)
    if not paths:
        raise ValueError(f"no image in {folder}: expected class/image.png or image.png")
    fingerprint = fingerprint_of(folder, paths, values)
    file = root / f"{folder.resolve().name}-{format_size(image_size)}-{fingerprint}.npz"
    if not file.is_file():
        if values is None and (values := find_folder_range(folder, paths)):
            tqdm.write(f"{folder}: {values} (--value-range LO,HI for another range)", sys.stderr)
        names = [class_name(path.relative_to(folder)) for path in paths]
        classes = sorted(set(names))
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[name] for name in names], np.int64)
        images = DecodedImages(paths, image_size, values, f"decoding {folder}")
        images.write(file, train_labels=labels, classes=classes)
    return file


@dataclass(frozen=True)
class DecodedImages:
    """Image files to be decoded and written to an .npz file one by one, so that only one image is
    in memory."""

    paths: list[Path]
    size: Size
    values: ValueRange | None
    title: str  # of the progress bar

    def write(self, file: Path, **arrays: ArrayLike) -> None:
        """Write the images, (N,H,W,1) if all are gray and else (N,H,W,3), and the other `arrays`.

        An image must be decoded to find out whether it has colours, so only a few are checked
        first. If these are gray and a later one is not, all images are written again. Raises
        ValueError or OSError with a one-line message.
        """
        step = -(-len(self.paths) // COLOUR_CHECKS)
        if all(is_gray(self.decode(path)) for path in self.paths[::step]):
            with contextlib.suppress(NotGrayError):
                self.write_parts(file, self.gray_images(), 1, arrays)
                return
        self.write_parts(file, self.images(), 3, arrays)

    def write_parts(
        self, file: Path, parts: Iterator[np.ndarray], channels: int, arrays: dict[str, ArrayLike]
    ) -> None:
        shape = (len(self.paths), *height_and_width(self.size), channels)
        try:
            write_npz(file, train_images=Parts(shape, parts), **arrays)
        except OSError as error:
            raise OSError(
                f"{file} cannot be written ({error.strerror or one_line(error)}); it needs "
                f"{math.prod(shape) / 2**20:.1f} MiB: choose another --data-root"
            ) from None

    def decode(self, path: Path) -> np.ndarray:
        return decode_image(path, self.size, self.values)

    def images(self) -> Iterator[np.ndarray]:
        """Each image, (1,H,W,3)."""
        for path in tqdm(self.paths, desc=self.title, unit=" images"):
            yield self.decode(path)[None]

    def gray_images(self) -> Iterator[np.ndarray]:
        """Each image, (1,H,W,1). Raises NotGrayError."""
        for image in self.images():
            if not is_gray(image):
                raise NotGrayError
            yield image[..., :1]


class NotGrayError(Exception):
    """An image has colours."""


def is_gray(image: np.ndarray) -> bool:
    """Whether the channels of an image (...,C) are equal."""
    return bool((image == image[..., :1]).all())


def image_paths(folder: Path) -> list[Path]:
    """All image files in a folder and its subfolders, sorted."""
    extensions = Image.registered_extensions()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in extensions and not path.name.startswith(".")
    )


def find_folder_range(folder: Path, paths: list[Path]) -> ValueRange | None:
    """`find_range`, with the folder's name in the message of the ValueError."""
    try:
        return find_range(paths)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def fingerprint_of(folder: Path, paths: list[Path], values: ValueRange | None) -> str:
    """Hash the relative path, size and modification time of every file, and how it is decoded."""
    entries: list[Any] = [DECODER, values]
    for path in paths:
        stat = path.stat()
        entries.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:8]


def class_name(relative_path: Path) -> str:
    """The first folder in a path, or "" for an image without a subfolder."""
    return relative_path.parts[0] if len(relative_path.parts) > 1 else ""
