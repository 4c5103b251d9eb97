"""Arrange images in a grid and write it as a PNG file.

    write_grid("samples/t0000.png", images)                       # uint8 (N,H,W,C), about square
    write_grid("samples/t0000.png", images, columns=8)
    write_grid("samples/real.png", pixels_of(x))                  # x float (N,C,H,W) in [-1, 1]

Letters in the shape columns: N images, C channels, H and W height and width.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from runtime.atomic_file import complete_file
from runtime.image_size import Size, height_and_width

if TYPE_CHECKING:
    from torch import Tensor

GAP = 2  # pixels between the images of a grid, and around them
WIDTH, HEIGHT = 512, 2048  # least width and greatest height of an enlarged grid


def square_columns(count: int, height: int = 1, width: int = 1) -> int:
    """The number of columns that makes a grid of `count` images about square.

    height, width: of an image; only their ratio matters.
    """
    return max(1, round((count * height / width) ** 0.5))


def image_grid(images: np.ndarray, columns: int = 0, gap: int = GAP) -> np.ndarray:
    """Arrange uint8 images (N,H,W,C) row by row on black; returns uint8 (H',W',C).

    columns: images in a row; 0 makes the grid about square.
    gap: pixels between the images and around all of them.
    """
    N, H, W, C = images.shape
    columns = min(columns or square_columns(N, H, W), N)
    rows = -(-N // columns)
    grid = np.zeros((rows * (H + gap) + gap, columns * (W + gap) + gap, C), np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = gap + row * (H + gap), gap + column * (W + gap)
        grid[top : top + H, left : left + W] = image
    return grid


def first_images(grid: np.ndarray, size: Size, count: int) -> list[np.ndarray]:
    """Cut up to `count` images out of the first row of a grid (H,W,C).

    size: of an image. Returns an empty list if the grid is too small for one.
    """
    H, W = height_and_width(size)
    height, width = grid.shape[:2]
    gap = 0 if width == W else GAP  # a single image is stored without a frame
    if height < H + gap:
        return []
    lefts = range(gap, width - W + 1, W + GAP)[:count]
    return [grid[gap : gap + H, left : left + W] for left in lefts]


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge every pixel of (...,H,W,C) to a square of scale x scale pixels."""
    return image.repeat(scale, axis=-3).repeat(scale, axis=-2)


def pixels_of(x: "Tensor") -> np.ndarray:
    """Images (N,C,H,W) in [-1, 1] -> uint8 (N,H,W,C).

    Rounds as torchvision's `save_image` does, which can differ by one level from `to_uint8`.
    """
    unit = x.detach().float().clamp(-1, 1).add(1).div(2)
    return unit.mul(255).add(0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 (H,W,C) with 1 or 3 channels as a PNG file. Raises OSError."""
    with complete_file(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(temporary)


def grid_scale(images: np.ndarray, columns: int = 0) -> int:
    """The factor that enlarges a grid of images (N,H,W,C) to a width of 512 to 1023 pixels.

    It is 1 for a wider grid. It is lower, but at least 1, if the height would be more than 2048.
    """
    height, width = image_grid(images[..., :1], columns).shape[:2]
    return max(1, min(-(-WIDTH // width), HEIGHT // height))


def write_grid(path: str | Path, images: np.ndarray, columns: int = 0, scale: int = 1) -> None:
    """Write uint8 images (N,H,W,C) as a PNG file: one image unchanged, several as an RGB grid.

    scale: factor by which the grid is enlarged.
    """
    if len(images) == 1:
        write_png(path, images[0])
        return
    grid = image_grid(np.broadcast_to(images, (*images.shape[:3], 3)), columns)
    write_png(path, enlarge(grid, scale))
