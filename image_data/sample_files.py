"""Images that any program made, as they are: neither resized nor cropped.

    samples = read_samples(Path("generated.npz"))     # or a folder of images
    samples.images                                    # uint8 (N,H,W,C), in the order of the file
    samples.labels                                    # int64 (N,), or None

An .npz file holds `arr_0` uint8 (N,H,W,C) and may hold `arr_1`, the classes (N,), as Inference.py,
improved-diffusion and guided-diffusion write it. A folder holds image files of one size, in any
depth of subfolders, as EDM writes them.

Letters in the shape columns: N images, C channels, H and W height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from image_data.image_files import find_folder_range, image_paths, open_image
from image_data.npz_files import NpzError, is_image_array, read_npz
from runtime.messages import one_line
from runtime.progress_bar import progress_bar


@dataclass(frozen=True)
class SampleFiles:
    """Images and, where they are known, their classes."""

    images: np.ndarray  # uint8 (N,H,W,C)
    labels: np.ndarray | None = None  # int64 (N,)


def read_samples(path: Path, left_out: Callable[[Path], bool] = lambda _: False) -> SampleFiles:
    """Read an .npz file or a folder of images. Raises ValueError, in one line.

    left_out: whether an image file in the folder is not to be read.
    """
    if path.is_dir():
        return SampleFiles(read_folder(path, left_out))
    if not path.exists():
        raise ValueError(f"no samples at {path}: give a folder of images or an .npz file")
    if path.suffix != ".npz":
        raise ValueError(f"{path} is neither an .npz file nor a folder of images")
    return read_file(path)


def read_file(file: Path) -> SampleFiles:
    """Read an .npz file. Raises ValueError, in one line."""
    try:
        arrays = read_npz(file)
    except (FileNotFoundError, NpzError) as error:
        raise ValueError(f"{file} cannot be read as an .npz file ({one_line(error)})") from None
    images, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if images is None or not is_image_array(images):
        contents = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items())
        raise ValueError(
            f"{file} must hold arr_0, uint8 (N,H,W,1) or (N,H,W,3), as numpy.savez(file, images) "
            f"writes it, and holds {contents or 'nothing'}"
        )
    if labels is None or labels.shape != (len(images),):
        return SampleFiles(images)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        return SampleFiles(images)
    return SampleFiles(images, labels.astype(np.int64))


def read_folder(folder: Path, left_out: Callable[[Path], bool]) -> np.ndarray:
    """Read a folder of images as uint8 (N,H,W,C), gray if every file is. Raises ValueError."""
    if (folder / "samples.npz").is_file():
        raise ValueError(f"{folder} holds samples.npz: give {folder / 'samples.npz'}")
    paths = [path for path in image_paths(folder) if not left_out(path)]
    if not paths:
        raise ValueError(f"no image in {folder}: give a folder of images or an .npz file")
    values = find_folder_range(folder, paths)
    pictures = []
    for path in progress_bar(paths, f"reading {folder}", unit=" images", leave=False):
        picture = open_image(path, values)
        if pictures and picture.size != pictures[0].size:
            raise ValueError(
                f"{path} has {picture.width}x{picture.height} pixels, and {paths[0]} "
                f"{pictures[0].width}x{pictures[0].height}: give images of one size"
            )
        pictures.append(picture)
    if all(picture.mode == "L" for picture in pictures):
        return np.stack([np.asarray(picture) for picture in pictures])[..., None]
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
