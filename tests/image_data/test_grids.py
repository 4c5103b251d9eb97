"""Image grids: the same pixels as torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid, save_image

from image_data.grids import (
    enlarge,
    first_images,
    grid_scale,
    image_grid,
    pixels_of,
    write_grid,
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns"), [(2, 0), (7, 0), (36, 0), (7, 4), (3, 5)])
def test_a_grid_is_that_of_torchvision(tmp_path, count, columns, channels):
    x = torch.randn(count, channels, 5, 6, generator=torch.Generator().manual_seed(0))
    images = pixels_of(x)
    tiles = torch.from_numpy(images).permute(0, 3, 1, 2)
    columns_used = columns or round((count * 5 / 6) ** 0.5)
    expected = make_grid(tiles, nrow=columns_used).permute(1, 2, 0)
    assert np.array_equal(
        np.broadcast_to(image_grid(images, columns), expected.shape), expected.numpy()
    )

    write_grid(tmp_path / "a.png", images, columns)
    save_image(x, tmp_path / "b.png", nrow=columns_used, normalize=True, value_range=(-1, 1))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_has_no_frame(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 5, channels), dtype=np.uint8)
    write_grid(tmp_path / "one.png", images)
    with Image.open(tmp_path / "one.png") as image:
        assert image.mode == ("L" if channels == 1 else "RGB")
        assert np.array_equal(np.asarray(image).reshape(4, 5, channels), images[0])


def test_the_first_images_are_cut_out_of_a_grid():
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    grid = image_grid(images, columns=3)
    for count in (1, 2, 3, 9):
        assert np.array_equal(first_images(grid, 4, count), images[: min(count, 3)])
    assert np.array_equal(first_images(images[0], 4, 3), images[:1])  # written without a frame
    assert first_images(images[0], 8, 3) == []


def test_a_grid_of_images_that_are_not_square_is_about_square():
    wide = np.random.default_rng(0).integers(0, 256, (18, 4, 8, 3), dtype=np.uint8)
    grid = image_grid(wide)
    assert grid.shape == (6 * 6 + 2, 3 * 10 + 2, 3)
    for count in (1, 3, 9):
        assert np.array_equal(first_images(grid, (4, 8), count), wide[: min(count, 3)])
    assert np.array_equal(first_images(wide[0], (4, 8), 3), wide[:1])
    assert first_images(wide[0], (8, 4), 3) == []
    assert image_grid(wide[:2].repeat(20, axis=2)).shape == (2 * 6 + 2, 164, 3)


@pytest.mark.parametrize(
    ("count", "size", "columns", "scale"),
    [
        (16, 32, 0, 4),
        (20, 32, 0, 4),
        (64, 32, 0, 2),
        (16, 128, 0, 1),
        (800, 32, 8, 1),
        (9, 32, 1, 6),
    ],
)
def test_a_grid_of_small_images_is_enlarged(tmp_path, count, size, columns, scale):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8)
    assert grid_scale(images, columns) == scale
    write_grid(tmp_path / "grid.png", images, columns, scale)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    small = np.broadcast_to(image_grid(images, columns), grid[::scale, ::scale].shape)
    assert np.array_equal(grid, enlarge(small, scale))


def test_enlarged_pixels_are_squares():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    expected = np.kron(image[..., 0], np.ones((3, 3), np.uint8))
    assert np.array_equal(enlarge(image, 3)[..., 0], expected)
