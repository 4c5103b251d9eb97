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
