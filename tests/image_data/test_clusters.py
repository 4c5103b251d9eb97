"""Clusters of images, as classes."""

import pytest
import torch

from image_data.clusters import find_centres, nearest_centres


def gray_images(levels: list[int]) -> torch.Tensor:
    """One uniform image (1,32,32) of each gray level."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 32, 32)


def test_similar_images_are_in_one_cluster():
    images = gray_images([0, 1, 2, 3, 250, 251, 252, 120, 121])
    labels = nearest_centres(images, find_centres(images, 3))
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]  # the largest cluster is first
    assert labels.dtype == torch.int64


def test_clusters_are_the_same_again():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 3, 16, 24), generator=random, dtype=torch.uint8)
    centres = find_centres(images, 7)
    assert centres.shape == (7, 192)
    assert torch.equal(centres, find_centres(images, 7))
    sizes = torch.bincount(nearest_centres(images, centres), minlength=7)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_more_clusters_than_different_images_are_refused():
    images = gray_images([7, 7, 9, 9])
    assert nearest_centres(images, find_centres(images, 2)).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    with pytest.raises(ValueError, match="need as many different images, and there are only 2"):
        find_centres(images, 3)
