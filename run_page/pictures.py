"""The pictures of a run's page, from the files of its run directory, as data: URLs.

    samples(Path("runs/cifar10"), class_names)     # {"images": [{"src": "data:image/png;base64,..", ..}, ..], ..}

Each function raises ValueError or OSError, in one line, where its files are not there or are not what they should be.
Letters in the shape columns: F frames, K kinds of them, N images, H and W height and width, C channels.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from Dataset import to_float
from DiffusionModel import DiffusionModel
from evaluation import results
from image_data.grids import first_images, image_grid
from image_data.image_files import open_image
from image_data.npz_files import NpzError, is_image_array, read_npz
from sampling import generate
from sampling.trajectory import read_trajectory

ROOM = 1_800_000  # bytes of pixels in a trajectory, of which half is noise that cannot be compressed: a page of less than 3 MB
SIDE = (
    128  # pixels of a picture's side in a trajectory; of larger ones every second, fourth, .. pixel
)
FRAMES = 64  # of a trajectory
SHOWN = 36  # samples
REAL = 3  # images that are noised
PART = (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1)  # of T: at which t


def inlined(image: np.ndarray) -> dict[str, Any]:
    """uint8 (H,W) or (H,W,C) as the PNG of an <img>: src, width, height. Gray where all channels are one."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., 0] if (image == image[..., :1]).all() else image
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", optimize=True)
    return {
        "src": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        "width": image.shape[1],
        "height": image.shape[0],
    }


def samples(file: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The first images of a samples.npz, and where they have labels their classes as .label: .images of .count."""
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
    shown = [inlined(image) for image in images[: min(SHOWN, max(4, ROOM // 4 // images[0].size))]]
    for one, label in zip(shown, labels):
        one["label"] = class_names[label] if 0 <= label < len(class_names) else str(label)
    return {"images": shown, "count": len(images)}


def trajectory(file: Path) -> dict[str, Any]:
    """A sprite with a row for each frame: n images x_t, then the n predictions of x_0; and what the page's script must know of it."""
    found = read_trajectory(file)
    kinds = [found.frames] if found.predicted is None else [found.frames, found.predicted]
    both, times = np.stack(kinds, axis=1), found.times  # (F,K,N,H,W,C)
    skip = 2 ** max(0, math.ceil(math.log2(max(both.shape[3:5]) / SIDE)))
    both = both[..., ::skip, ::skip, :]  # not a mean of pixels, which would be less noise
    F, K, N, H, W, C = both.shape
    n = next(n for n in (16, 9, 4, 1) if n <= N and (n * both[:, :, 0].size <= ROOM or n == 1))
    kept = (
        np.linspace(0, F - 1, min(F, FRAMES, max(2, ROOM // both[0, :, 0].size)))
        .round()
        .astype(int)
    )
    chosen = np.linspace(0, N - 1, n).round().astype(int)
    both = both[kept][:, :, chosen]
    strip = image_grid(both.reshape(-1, H, W, C), columns=K * n, gap=0)
    script = {
        "times": times[kept].tolist(),
        "n": n,
        "columns": round(n**0.5),
        "width": W,
        "height": H,
    }
    return {"sprite": inlined(strip), "script": script, "predicted": K == 2, "skip": skip, "of": N}


def noised(file: Path, process: DiffusionModel, size: int, depth: int) -> dict[str, Any]:
    """x_t of the first real images in samples/real.png, whose tiles are `size` wide, at several t, by the model's own q_sample:
    .steps, each with .t, .alpha_bar and all of them below each other; how many, .count."""
    picture = open_image(file)
    pixels = np.asarray(picture.convert("L" if depth == 1 else "RGB")).reshape(
        picture.height, picture.width, -1
    )
    images = first_images(pixels, size, REAL)
    if not images:
        raise ValueError(f"{file} is no grid of images {size} pixels wide")
    tiles = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]  # (C,H,W)
    times = sorted({round(share * process.T) for share in PART})
    walks = [
        generate.forward(process, to_float(tile), times, seed) for seed, tile in enumerate(tiles)
    ]
    return {
        "steps": [
            inlined(np.concatenate([walk[t][0] for walk in walks]))
            | {"t": t, "alpha_bar": process.alpha_bar(t)}
            for t in times
        ],
        "count": len(tiles),
    }


def previews(folder: Path) -> dict[str, Any]:
    """The first, the middle and the last of the samples that were drawn while it was trained, and the real images: .images."""
    files = sorted(folder.glob("step_*.png"))
    files = [files[i] for i in sorted({0, len(files) // 2, len(files) - 1})] if files else []
    found = [
        (file, "after step " + f"{int(file.stem[5:]):,}")
        for file in files
        if file.stem[5:].isdecimal()
    ]
    found += [(folder / "real.png", "real images")] if (folder / "real.png").is_file() else []
    if not found:
        raise ValueError(f"there is no {folder / 'step_*.png'}")
    return {
        "images": [
            inlined(np.asarray(open_image(file))) | {"title": title} for file, title in found
        ]
    }


def neighbours(folder: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """The pictures of the samples most like a training image, and how alike they are: .images, each with its .features and .lines."""
    files = sorted(folder.glob("nearest-*.png"))
    if not files:
        raise ValueError(f"there is no {folder / 'nearest-*.png'}")
    found = []
    for file in files:
        features = file.stem.removeprefix("nearest-")
        one = measured.get("memorization", {}).get(features)
        picture = np.asarray(open_image(file))[
            1::3, 1::3
        ]  # evaluate.py writes it three times as large
        found.append(
            inlined(picture)
            | {
                "features": features,
                "lines": results.of_memorization({features: one})[:-1] if one else [],
            }
        )
    return {"images": found}
