"""The pictures of a run's page, each a PNG embedded in the HTML.

Letters in the shape columns: F frames, K kinds of images in a frame (x_t and the prediction of
x_0), N images, H and W height and width, C channels.
"""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from Dataset import to_float
from DiffusionModel import DiffusionModel
from evaluation.tables import memorization_lines
from image_data.grids import first_images, image_grid
from image_data.image_files import open_image
from image_data.npz_files import NpzError, is_image_array, read_npz
from runtime.image_size import Size, format_size
from sampling.generate import noise_image
from sampling.trajectory import read_trajectory

# Bytes of pixels in a trajectory. Half of it is noise, which cannot be compressed; the page stays
# below 3 MB.
MAX_BYTES = 1_800_000
MAX_SIDE = 128  # of an image in a trajectory; larger ones show only every 2nd, 4th, .. pixel
MAX_FRAMES = 64
SAMPLE_COUNTS = (16, 9, 4, 1)  # numbers of images in a trajectory; the largest that fits is used
MAX_SAMPLES = 36
REAL_IMAGES = 3  # number of real images to noise
NOISE_LEVELS = (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)  # the t that are shown, relative to T
NEIGHBOUR_SCALE = 3  # evaluate.py writes every pixel as 3x3


@dataclass(frozen=True)
class Picture:
    """An <img>."""

    src: str  # a data URL
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Samples:
    """The first images of samples.npz."""

    images: list[Picture]
    labelled: bool  # whether the captions are class names
    count: int  # images in samples.npz


@dataclass(frozen=True)
class TrajectorySprite:
    """All frames of a trajectory in one picture, for the page's player."""

    sprite: Picture  # a row for every frame: n images x_t, then their n predictions of x_0
    script: dict[str, Any]  # what the page's script needs: times, n, columns, width, height
    predicted: bool  # whether there are predictions of x_0
    skip: int  # every `skip`-th pixel is shown
    count: int  # images in trajectory.npz


@dataclass(frozen=True)
class NoiseLevel:
    """Real images with noise at one t, one below the other."""

    picture: Picture
    t: int
    alpha_bar: float


@dataclass(frozen=True)
class NoisedImages:
    """Real images at several noise levels."""

    steps: list[NoiseLevel]
    count: int  # real images


@dataclass(frozen=True)
class Previews:
    """Grids of samples drawn during training, and of real images."""

    images: list[Picture]


@dataclass(frozen=True)
class NeighbourPicture:
    """Samples beside their nearest training images."""

    picture: Picture
    features: str  # name of the feature extractor
    lines: list[str]  # what was measured, in words


@dataclass(frozen=True)
class Neighbours:
    """A picture for every feature extractor."""

    images: list[NeighbourPicture]


def embed(image: np.ndarray, caption: str = "") -> Picture:
    """Encode uint8 (H,W) or (H,W,C), as a gray image if all channels are equal."""
    if image.ndim == 2:
        image = image[..., None]
    if (image == image[..., :1]).all():
        image = image[..., 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", optimize=True)
    src = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(src, image.shape[1], image.shape[0], caption)


def read_samples(file: Path, class_names: tuple[str, ...]) -> Samples:
    """Read the first images of a samples.npz. Raises ValueError, in one line."""
    try:
        arrays = read_npz(file, ("arr_0",), ("arr_1",))
    except FileNotFoundError:
        raise ValueError(f"there is no {file}") from None
    except NpzError as error:
        raise ValueError(f"{file} cannot be read ({error.kind})") from None
    images = arrays["arr_0"]
    labels = arrays["arr_1"].tolist() if "arr_1" in arrays else []
    if not is_image_array(images):
        raise ValueError(
            f"{file} must hold uint8 (N,H,W,1 or 3), not {images.dtype} {images.shape}"
        )
    if labels and len(labels) != len(images):
        raise ValueError(f"{file} has {len(labels)} labels for {len(images)} images")
    shown = min(MAX_SAMPLES, max(4, MAX_BYTES // 4 // images[0].size))
    captions = [class_name(label, class_names) for label in labels[:shown]]
    captions = captions or [""] * shown
    pictures = [embed(image, caption) for image, caption in zip(images[:shown], captions)]
    return Samples(pictures, labelled=bool(labels), count=len(images))


def class_name(label: int, class_names: tuple[str, ...]) -> str:
    """The name of a class, or its number if it has no name."""
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def read_sprite(file: Path) -> TrajectorySprite:
    """Read a trajectory and subsample it to fit into the page."""
    trajectory = read_trajectory(file)
    kinds = [trajectory.frames]
    if trajectory.predicted is not None:
        kinds.append(trajectory.predicted)
    frames = np.stack(kinds, axis=1)  # (F,K,N,H,W,C)

    skip = 2 ** max(0, math.ceil(math.log2(max(frames.shape[3:5]) / MAX_SIDE)))
    frames = frames[..., ::skip, ::skip, :]  # averaging pixels would reduce the noise
    F, K, N, H, W, C = frames.shape
    n = number_of_images(frames)
    rows = min(F, MAX_FRAMES, max(2, MAX_BYTES // (n * frames[0, :, 0].size)))
    shown_frames = evenly_spaced(F, rows)
    frames = frames[shown_frames][:, :, evenly_spaced(N, n)]
    sprite = image_grid(frames.reshape(-1, H, W, C), columns=K * n, gap=0)
    script = {
        "times": trajectory.times[shown_frames].tolist(),
        "n": n,
        "columns": round(n**0.5),
        "width": W,
        "height": H,
    }
    return TrajectorySprite(embed(sprite), script, K == 2, skip, N)


def number_of_images(frames: np.ndarray) -> int:
    """How many images (F,K,N,H,W,C) fit into the page with all their frames; at least one."""
    size = frames[:, :, 0].size
    fitting = [n for n in SAMPLE_COUNTS if n <= frames.shape[2] and n * size <= MAX_BYTES]
    return max(fitting, default=1)


def evenly_spaced(count: int, number: int) -> np.ndarray:
    """`number` evenly spaced indices from 0 to count - 1, both included."""
    return np.linspace(0, count - 1, number).round().astype(int)


def noise_real_images(file: Path, process: DiffusionModel, size: Size, depth: int) -> NoisedImages:
    """Add noise to the first real images in samples/real.png with the forward process.

    size: of an image in that grid; depth: its channels.
    """
    picture = open_image(file).convert("L" if depth == 1 else "RGB")
    grid = np.asarray(picture).reshape(picture.height, picture.width, -1)
    images = first_images(grid, size, REAL_IMAGES)
    if not images:
        raise ValueError(f"{file} is no grid of images of size {format_size(size)}")
    times = sorted({round(level * process.T) for level in NOISE_LEVELS})
    noised = []
    for seed, image in enumerate(images):
        x_0 = to_float(torch.from_numpy(image.transpose(2, 0, 1).copy()))  # (C,H,W)
        noised.append(noise_image(process, x_0, times, seed))
    steps = []
    for t in times:
        column = np.concatenate([images_at[t][0] for images_at in noised])
        steps.append(NoiseLevel(embed(column), t, process.alpha_bar(t)))
    return NoisedImages(steps, len(images))


def read_previews(folder: Path) -> Previews:
    """Read the first, the middle and the last preview of a run, and the real images. Raises
    ValueError, in one line."""
    files = sorted(folder.glob("step_*.png"))
    if files:
        files = [files[i] for i in sorted({0, len(files) // 2, len(files) - 1})]
    captions = {}
    for file in files:
        step = file.stem.removeprefix("step_")
        if step.isdecimal():
            captions[file] = f"after step {int(step):,}"
    if (folder / "real.png").is_file():
        captions[folder / "real.png"] = "real images"
    if not captions:
        raise ValueError(f"there is no {folder / 'step_*.png'}")
    return Previews(
        [embed(np.asarray(open_image(file)), caption) for file, caption in captions.items()]
    )


def read_neighbours(folder: Path, measured: dict[str, Any]) -> Neighbours:
    """Read the pictures of the samples most like a training image, and what was measured. Raises
    ValueError, in one line."""
    files = sorted(folder.glob("nearest-*.png"))
    if not files:
        raise ValueError(f"there is no {folder / 'nearest-*.png'}")
    pictures = []
    for file in files:
        features = file.stem.removeprefix("nearest-")
        audit = measured.get("memorization", {}).get(features)
        lines = memorization_lines({features: audit})[:-1] if audit else []
        middle = slice(NEIGHBOUR_SCALE // 2, None, NEIGHBOUR_SCALE)
        image = np.asarray(open_image(file))[middle, middle]
        pictures.append(NeighbourPicture(embed(image), features, lines))
    return Neighbours(pictures)
