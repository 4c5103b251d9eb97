"""Image files as uint8 arrays.

    open_image("photo.jpg")                              # a PIL image, RGB or L
    decode_folder(Path("photos"), Path("data"), 32)      # data/photos-32-1a2b3c4d.npz

Letters in the shape comments: N images, C channels, H and W height and width.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from image_data.npz_files import write_npz
from image_data.value_range import ValueRange, choose_range, find_range, is_deep
from runtime.messages import one_line

DECODER = 2  # counts up when the same files give other pixels


def open_image(path: str | Path, values: ValueRange | None = None) -> Image.Image:
    """Read an image file of any mode as RGB, or as L if its mode has no colour.

    The image is turned upright as its EXIF data say. Transparent pixels become white. values: the
    range of more than 8 bits, by default that of this image. Raises ValueError with the file's name
    if it cannot be read.
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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({one_line(error)}): repair or remove it"
        ) from None


def crop_to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image and crop its centre: uint8 (size,size,3), or (size,size) if it is gray."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def decode_image(path: Path, size: int, values: ValueRange | None = None) -> np.ndarray:
    """Read an image file as uint8 (size,size,3), resized and cropped to its centre."""
    return crop_to_square(open_image(path, values).convert("RGB"), size)


def fit_images(images: np.ndarray, size: int) -> np.ndarray:
    """Fit uint8 (N,H,W,C) to (N,size,size,C).

    28x28 is padded with black to 32x32. Other sizes are resized and cropped to the centre.
    """
    height_and_width = images.shape[1:3]
    if height_and_width == (size, size):
        return images
    if height_and_width == (28, 28) and size == 32:
        return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    resized = [crop_to_square(Image.fromarray(image.squeeze()), size) for image in images]
    return np.stack(resized).reshape(len(images), size, size, -1)


def decode_folder(
    folder: Path, root: Path, image_size: int, values: ValueRange | None = None
) -> Path:
    """Decode a folder of images into an .npz file in `root`, unless that exists.

    values: the range of images of more than 8 bits, by default found in all of them. Raises
    ValueError if there is no image, or one cannot be read, or the range cannot be found.

    The file's name contains a hash of the names, sizes and times of all images, so that the folder
    is decoded again after a change. Images in a subfolder have its name as their class.
    """
    extensions = Image.registered_extensions()
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in extensions and not path.name.startswith(".")
    )
    if not paths:
        raise ValueError(f"no image in {folder}: expected class/image.png or image.png")
    fingerprint = fingerprint_of(folder, paths, values)
    file = root / f"{folder.resolve().name}-{image_size}-{fingerprint}.npz"
    if not file.is_file():
        if values is None and (values := find_folder_range(folder, paths)):
            tqdm.write(f"{folder}: {values} (--value-range LO,HI for another range)", sys.stderr)
        progress = tqdm(paths, desc=f"decoding {folder}", unit=" images")
        images = np.stack([decode_image(path, image_size, values) for path in progress])
        if (images == images[..., :1]).all():
            images = images[..., :1]  # (N,H,W,1): every image is gray
        names = [class_name(path.relative_to(folder)) for path in paths]
        classes = sorted(set(names))
        labels = np.array([classes.index(name) for name in names], np.int64)
        try:
            write_npz(file, train_images=images, train_labels=labels, classes=classes)
        except OSError as error:
            raise ValueError(
                f"cannot write {file} ({error.strerror}): make room, or choose another --data-root"
            ) from None
    return file


def find_folder_range(folder: Path, paths: list[Path]) -> ValueRange | None:
    """`find_range`, with the folder in what ValueError says."""
    try:
        return find_range(paths)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def fingerprint_of(folder: Path, paths: list[Path], values: ValueRange | None) -> str:
    """Hash the relative name, size and modification time of every file, and how it is decoded."""
    entries: list[Any] = [DECODER, values]
    for path in paths:
        stat = path.stat()
        entries.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:8]


def class_name(relative_path: Path) -> str:
    """The first folder in a path, or an empty name for an image without a subfolder."""
    return relative_path.parts[0] if len(relative_path.parts) > 1 else ""
