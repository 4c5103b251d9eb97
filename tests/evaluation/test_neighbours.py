"""The nearest images, and whether samples are copies."""

import pytest
import torch
from image_sets import blurred, normal

from Dataset import DiffSet
from evaluation import metrics, neighbours
from evaluation.real_images import RealImages


@pytest.mark.parametrize("far", [0, 3000])
def test_the_nearest_are_those_of_a_slow_search(monkeypatch, far):
    """Also among images that are far from 0 and near to each other."""
    monkeypatch.setattr(neighbours, "SEARCH_CHUNK", 30)
    images, others = normal(1003, 5, far), normal(70, 5, far, seed=1)
    found, indices = neighbours.nearest(images, others, 2)
    for i in (0, 500, 1002):
        slow = sorted((float((images[i] - other).norm()), j) for j, other in enumerate(others))[:2]
        assert indices[i].tolist() == [j for _, j in slow]
        assert found[i].tolist() == pytest.approx([d for d, _ in slow], rel=1e-4)
    among, _ = neighbours.nearest(images, images, exclude_self=True)
    assert float(among.min()) > 0
    assert float(among[1001]) == pytest.approx(
        min(float((images[1001] - x).norm()) for i, x in enumerate(images) if i != 1001), rel=1e-4
    )


def test_copies_are_distinguished_from_images_of_the_same_kind():
    train, test_set, fresh = (
        normal(count, 6, seed=seed) for seed, count in enumerate((3000, 1000, 800))
    )
    honest, _ = neighbours.audit(fresh, train, test_set)
    assert honest["ratio"] == pytest.approx(1, abs=0.03)
    assert honest["copies"] < 0.03
    assert honest["duplicates"] < 0.03
    copied, _ = neighbours.audit(train[:800] + 0.01 * fresh, train, test_set)
    assert copied["ratio"] < 0.8
    assert copied["copies"] > 0.9
    half, quotient = neighbours.audit(torch.cat([fresh[:400], train[:400]]), train, test_set)
    assert half["copies"] == pytest.approx(0.5, abs=0.05)
    assert float(quotient[400:].max()) < 1e-6
    assert float(quotient[:400].min()) > 0.01
    known, _ = neighbours.audit(
        train[2000:2400], train[:2400], test_set
    )  # the last chunk of training images is smaller
    assert known["copies"] == 1
    twice, _ = neighbours.audit(
        train[:400], train, torch.cat([train[:500], test_set[:500]])
    )  # where real images come twice
    assert twice["copies"] == 1
    twins, _ = neighbours.audit(torch.cat([fresh[:100], fresh[:100] + 1e-3]), train, test_set)
    assert twins["duplicates"] == 1
    collapsed, _ = neighbours.audit(fresh[:1] + 0.01 * fresh, train, test_set)
    assert collapsed["duplicates"] == 1
    same, _ = neighbours.audit(
        torch.zeros(9, 6), torch.zeros(20, 6), torch.zeros(9, 6)
    )  # all distances are 0
    assert same["copies"] == same["duplicates"] == 1


def test_the_ratio_of_two_sets_of_the_same_distribution_is_1():
    """Copies are counted as equal, and distant images have a larger ratio."""
    reference, fresh = normal(1000, 6), normal(600, 6, seed=1)
    honest, distances = neighbours.audit_pair(fresh, reference)
    assert honest["ratio"] == pytest.approx(1, abs=0.03)
    assert honest["equal"] == 0
    assert honest["duplicates"] < 0.03
    assert float(distances[5]) == pytest.approx(
        min(float((fresh[5] - x).norm()) for x in reference), rel=1e-4
    )
    half, _ = neighbours.audit_pair(torch.cat([fresh[:300], reference[:300]]), reference)
    assert half["equal"] == 0.5
    assert neighbours.audit_pair(fresh + 3, reference)[0]["ratio"] > 3
    assert neighbours.audit_pair(fresh[:1].repeat(9, 1), reference)[0]["duplicates"] == 1


@pytest.mark.parametrize(
    "worse", [lambda x: blurred(x, 1.2), lambda x: (127.5 + (x.float() - 127.5) / 2).round().byte()]
)
def test_smooth_and_pale_samples_are_not_called_copies(shapes, worse):
    """Such images are nearer to all images than real ones are, also to training images."""
    test_set = DiffSet(False, "shapes")
    test_set.images = shapes.test_set.images[:500]
    real = RealImages(shapes.train_set, test_set, shapes.root)
    samples = worse(shapes.test_set.images[500:800])
    found, picture = metrics.memorization(shapes.classifier, samples, real)
    assert found["pixels"]["copies"] < 0.06
    assert found["pixels"]["duplicates"] < 0.03
    assert picture.shape == (3, 8 * 34, 9 * 34 + 2 * 6)


def test_the_picture_has_a_row_for_each_sample():
    samples, train = (
        torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 1, 4, 4),
    )
    picture = neighbours.draw_neighbours(
        samples,
        train,
        torch.tensor([[1, 2], [3, 4], [5, 6]]),
        torch.tensor([[7, 8], [8, 7], [0, 1]]),
        columns=2,
    )
    assert picture.shape == (1, 3 * 6, 6 + 6 + 12 + 6 + 12)
    assert picture[0, 3::6, 14].tolist() == [1, 3, 5]
    assert picture[0, 3::6, -3].tolist() == [8, 7, 1]
