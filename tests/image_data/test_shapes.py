"""The generated dataset."""

import torch

from image_data import shapes


def test_shapes_are_a_function_of_index_and_seed():
    a, labels = shapes.draw(40, 32, seed=0)
    b, _ = shapes.draw(10, 32, seed=0)
    assert torch.equal(a[:10], b)
    assert not torch.equal(a[:10], shapes.draw(10, 32, seed=1)[0])
    assert set(labels.tolist()) == set(range(5))
    assert a.dtype == torch.uint8
    bright = a.amax(dim=1) > 150  # the shape, well inside and of some size
    assert (bright.sum((1, 2)) > 15).all()
    assert not bright[:, 0].any()
    assert not bright[:, :, -1].any()


def test_shapes_are_not_stretched_by_the_image():
    square, wide = shapes.draw(40, 32, seed=0)[0], shapes.draw(40, (32, 64), seed=0)[0]
    assert wide.shape == (40, 3, 32, 64)
    areas = [(images.amax(dim=1) > 150).sum((1, 2)).float() for images in (square, wide)]
    assert (areas[1] / areas[0] - 1).abs().max() < 0.1
    across = (wide.amax(dim=1) > 150).any(1).float()  # (40,64)
    assert across.any(0)[16:48].all()
    assert across[:, :16].any()
    assert across[:, 48:].any()
    high = shapes.draw(40, (64, 32), seed=0)[0]
    assert (high.amax(dim=1) > 150)[:, 48:].any()


def test_shapes_stand_upright():
    images, labels = shapes.draw(200, 32, seed=0)
    shape = images.amax(dim=1) > 120  # (200,32,32)
    widths = shape.sum(dim=2)  # (200,32) of each row
    for rows in widths[labels == shapes.KINDS.index("triangle")]:
        rows = rows[rows > 0]
        assert rows[:3].sum() < rows[-5:-2].sum()
    for square in shape[labels == shapes.KINDS.index("square")]:
        down, across = square.any(1).sum(), square.any(0).sum()
        assert square.sum() > 0.7 * down * across  # a diamond would fill half of it
