"""Distances, against independent implementations and formulas."""

import pytest
import torch
import torch_fidelity
from image_sets import blurred, noisy, normal
from torchmetrics.image.fid import FrechetInceptionDistance

from evaluation import distances, features, metrics


def test_frechet_distance_equals_torchmetrics_and_the_formula_for_normal_distributions():
    """For diagonal covariances it is the squared distance of the means plus that of the standard
    deviations."""
    one, other = normal(400, 6), normal(300, 6, 0.3, seed=1) * torch.linspace(0.5, 2, 6)
    found = distances.frechet(distances.statistics(one), distances.statistics(other))
    metric = FrechetInceptionDistance(
        feature=type("Same", (torch.nn.Module,), {"num_features": 6, "forward": lambda _, x: x})()
    )
    metric = metric.set_dtype(torch.float64)
    metric.update(one.double(), real=True)
    metric.update(other.double(), real=False)
    assert found == pytest.approx(float(metric.compute()), rel=1e-4)
    exact = {
        "mu": torch.zeros(3).double().numpy(),
        "sigma": torch.diag(torch.tensor([1.0, 4, 9])).double().numpy(),
    }
    moved = {
        "mu": torch.tensor([1.0, 0, 2]).double().numpy(),
        "sigma": torch.diag(torch.tensor([4.0, 4, 1])).double().numpy(),
    }
    assert distances.frechet(exact, moved) == pytest.approx(1 + 4 + 1 + 0 + 4)


def test_kernel_is_the_unbiased_discrepancy_of_the_cubic_kernel():
    """With only 12 images, each of the random subsets contains all of them. The expected value is
    Eq. 4 of Bińkowski et al. 2018, summed pair by pair."""
    x, y = normal(12, 4).double(), normal(12, 4, 0.5, seed=1).double()

    def k(a, b):
        return float((a @ b / 4 + 1) ** 3)

    n = range(12)
    expected = (
        sum(k(x[i], x[j]) + k(y[i], y[j]) for i in n for j in n if i != j) / (12 * 11)
        - 2 * sum(k(x[i], y[j]) for i in n for j in n) / 12**2
    )
    assert distances.kernel(x.float(), y.float()) == pytest.approx(expected, rel=1e-4)


def test_precision_and_recall_by_hand():
    """Real images on a line at 0, 1, .. 9, and samples within and out of reach of them.

    The third neighbour is 3 away at the ends, and 2 in between.
    """
    real = torch.arange(10.0)[:, None]
    samples = torch.tensor(
        [[0.5], [9.5], [20.0], [21.0], [22.0], [23.0], [24.0], [25.0], [26.0], [-30.0]]
    )
    found = distances.precision_and_recall(samples, real)

    def reach(points):
        return [sorted(abs(float(p - q)) for q in points)[3] for p in points]

    inside = [any(abs(float(s - p)) <= r for p, r in zip(real, reach(real))) for s in samples]
    covered = [any(abs(float(s - p)) <= r for p, r in zip(samples, reach(samples))) for s in real]
    assert found == pytest.approx((sum(inside) / 10, sum(covered) / 10))
    assert 0 < found[0] < found[1]
    assert distances.precision_and_recall(real, real) == (1, 1)


@pytest.mark.slow
def test_kernel_distance_precision_recall_and_inception_score_equal_torch_fidelity(
    shapes, inception_file
):
    """torch-fidelity loads the same images and extracts the features itself, with the same weights.
    Its FID, which takes a minute, is compared in test_scoring.py."""
    samples, real = shapes.test_set.images[:16], shapes.train_set.images[:16]
    extractor = features.load_feature_extractor(
        "inception",
        shapes.train_set,
        shapes.test_set,
        shapes.root,
        inception_weights=inception_file,
    )
    (sample_features, logits), (of_real, _) = (
        features.extract_features(extractor, images) for images in (samples, real)
    )
    assert sample_features.shape == (16, 2048)
    assert logits.shape == (16, 1008)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(samples),
        input2=Images(real),
        cuda=False,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=16,
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
        feature_extractor_weights_path=str(inception_file),
        batch_size=16,
        num_workers=0,
        verbose=False,
        cache=False,
    )
    found = distances.all_distances(sample_features, of_real)
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])
    assert found["kernel"] == pytest.approx(
        expected["kernel_inception_distance_mean"], rel=1e-4, abs=1e-7
    )
    assert distances.inception_score(logits) == pytest.approx(
        expected["inception_score_mean"], rel=1e-4
    )


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_inception_score_of_certain_and_of_uniform_predictions():
    sure = torch.eye(5)[torch.arange(1000) % 5] * 1000
    assert distances.inception_score(sure) == pytest.approx(5, rel=0.02)
    assert distances.inception_score(torch.zeros(1000, 5)) == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["classifier", pytest.param("efficientnet-lite0", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("worse", "levels"),
    [
        (noisy, (0, 24, 72, 216)),
        pytest.param(blurred, (0, 0.6, 1.2, 2), marks=pytest.mark.slow),
    ],
)
def test_every_distance_grows_with_noise_and_blur(shapes, name, worse, levels):
    extractor = (
        shapes.classifier
        if name == "classifier"
        else features.load_feature_extractor(name, shapes.train_set, shapes.test_set, shapes.root)
    )
    images = shapes.test_set.images[: 500 if name == "classifier" else 60]
    (real, *others) = (
        features.extract_features(extractor, worse(images, level))[0] for level in levels
    )
    found = [distances.all_distances(one, real) for one in (real, *others)]
    for metric in ("frechet", "kernel"):
        values = [one[metric] for one in found]
        assert values == sorted(values), (metric, values)
        assert values[-1] > values[-2] > abs(values[0])
    if name == "classifier":
        scores = [
            distances.inception_score(features.extract_features(extractor, worse(images, level))[1])
            for level in levels
        ]
        assert scores[-1] == min(scores), (
            scores
        )  # not sorted: a little noise can make the predictions more even
        assert scores[-1] < 0.7 * scores[0], scores
    recall, precision = ([one[metric] for one in found] for metric in ("recall", "precision"))
    assert recall == sorted(recall, reverse=True), recall
    assert recall[-1] < recall[0] - 0.2
    assert max(precision[1:]) < precision[0]  # not sorted: images that are all alike can be precise


def test_noise_images_are_clipped_normal_noise():
    images = metrics.noise_images(1050, (3, 8, 8)).float() / 127.5 - 1
    # the first images do not depend on the count
    assert torch.equal(metrics.noise_images(7, (3, 8, 8)).float() / 127.5 - 1, images[:7])
    assert abs(float(images.mean())) < 0.02
    assert 0.6 < float(images.std()) < 0.8  # of a normal distribution cut off at -1 and 1: 0.72
    assert float(((images == -1) | (images == 1)).float().mean()) == pytest.approx(0.317, abs=0.02)
