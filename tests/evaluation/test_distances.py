"""Distances, feature extractors and neighbours, against other derivations."""

import builtins
import hashlib
import pickle
import urllib.error
from argparse import Namespace

import pytest
import torch
import torch_fidelity
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3
from torchmetrics.image.fid import FrechetInceptionDistance

from Dataset import DiffSet
from evaluation import classifier, distances, features, metrics, neighbours
from evaluation.real_images import RealImages


def normal(count, size, shift=0.0, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """4000 training images, 1000 test images, and the classifier of them."""
    train_set, test_set = DiffSet(True, "shapes"), DiffSet(False, "shapes")
    train_set.images, train_set.labels = train_set.images[:4000], train_set.labels[:4000]
    test_set.images, test_set.labels = test_set.images[:1000], test_set.labels[:1000]
    root = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classifier, "NARROW_WIDTH", 16)
        patched.setattr(classifier, "MIN_STEPS", 60)
        extractor = features.load_feature_extractor("classifier", train_set, test_set, root)
    return Namespace(train_set=train_set, test_set=test_set, root=root, classifier=extractor)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Weights of Inception in torch-fidelity's format, as they are before any training."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(inceptionv3.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        net = inceptionv3.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(net.state_dict(), file)
    return file


# ---- the numbers ---------------------------------------------------------------------------------


def test_frechet_is_torchmetrics_and_that_of_normal_distributions():
    """In closed form, for two with the same axes: squared distances of means and deviations."""
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
    """With one subset of all images, pair by pair: Eq. 4 of Bińkowski et al. 2018."""
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


def test_all_of_them_are_what_torch_fidelity_measures_itself(shapes, inception_file):
    """Its own run over images, with its own loading of them and the same weights: to 1e-4."""
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
        fid=True,
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
    assert found["frechet"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
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


def test_inception_score_of_sure_and_even_answers_is_the_number_of_classes():
    sure = torch.eye(5)[torch.arange(1000) % 5] * 1000
    assert distances.inception_score(sure) == pytest.approx(5, rel=0.02)
    assert distances.inception_score(torch.zeros(1000, 5)) == pytest.approx(1)


def noisy(images, level):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images.float() + level * noise).round().clamp(0, 255).byte()


def blurred(images, level):
    if not level:
        return images
    axis = torch.arange(-12.0, 13)
    weights = torch.exp(-(axis**2) / 2 / level**2)
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 25, 25)
    return (
        F.conv2d(F.pad(images.float(), (12,) * 4, mode="replicate"), kernel, groups=3)
        .round()
        .byte()
    )


@pytest.mark.parametrize(
    "name", ["classifier", pytest.param("efficientnet-lite0", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("worse", "levels"), [(noisy, (0, 12, 36, 108)), (blurred, (0, 0.6, 1.2, 2))]
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
        )  # no more: a little noise can make its answers more even
        assert scores[-1] < 0.7 * scores[0], scores
    recall, precision = ([one[metric] for one in found] for metric in ("recall", "precision"))
    assert recall == sorted(recall, reverse=True), recall
    assert recall[-1] < recall[0] - 0.2
    assert (
        max(precision[1:]) < precision[0]
    )  # and no more: images that are all alike can be precise


def test_noise_is_what_sampling_begins_from():
    images = metrics.noise_images(1050, (3, 8, 8)).float() / 127.5 - 1
    assert torch.equal(
        metrics.noise_images(7, (3, 8, 8)).float() / 127.5 - 1, images[:7]
    )  # image 6 is image 6 among any number
    assert abs(float(images.mean())) < 0.02
    assert 0.6 < float(images.std()) < 0.8  # of a normal distribution cut off at -1 and 1: 0.72
    assert float(((images == -1) | (images == 1)).float().mean()) == pytest.approx(0.317, abs=0.02)


# ---- the feature extractors ----------------------------------------------------------------------


def test_batches_change_no_features_and_gray_is_taken_for_colour(shapes):
    extractor = features.load_feature_extractor(
        "efficientnet-lite0", shapes.train_set, shapes.test_set, shapes.root
    )
    images = shapes.test_set.images[:6]
    whole, parts = (
        features.extract_features(extractor, images, batch_size=size)[0] for size in (6, 4)
    )
    assert whole.shape == (6, 1280)
    assert torch.allclose(whole, parts, atol=1e-4)
    gray = images[:, :1]
    assert torch.allclose(
        features.extract_features(extractor, gray)[0],
        features.extract_features(extractor, gray.expand(-1, 3, -1, -1))[0],
        atol=1e-5,
    )


def test_features_of_real_images_are_kept_and_taken_anew_where_they_are_damaged(
    shapes, monkeypatch
):
    found = features.reference_features(shapes.classifier, shapes.test_set, shapes.root, 50)
    with monkeypatch.context() as patched:
        patched.setattr(features, "extract_features", lambda *_: pytest.fail("they were kept"))
        assert torch.equal(
            features.reference_features(shapes.classifier, shapes.test_set, shapes.root, 50), found
        )
    files = set(shapes.root.glob("shapes-classifier-features-*.npy"))
    features.reference_features(
        shapes.classifier, shapes.test_set, shapes.root, 51
    )  # other images are another file
    (new,) = set(shapes.root.glob("shapes-classifier-features-*.npy")) - files
    for damage in (new.read_bytes()[:300], b"PK\x03\x04 and no archive", b""):
        new.write_bytes(damage)
        assert features.reference_features(
            shapes.classifier, shapes.test_set, shapes.root, 51
        ).shape == (51, 64)


def test_what_is_missing_is_said_in_one_line(shapes, monkeypatch, tmp_path):
    def refusal(name, weights=None):
        with pytest.raises((ValueError, OSError)) as error:
            features.load_feature_extractor(
                name, shapes.train_set, shapes.test_set, tmp_path, inception_weights=weights
            )
        assert "\n" not in str(error.value)
        return str(error.value)

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    said = refusal("inception")
    assert "no network" in said
    assert "releases/download" in said
    assert f"place it in {tmp_path}" in said
    assert list(tmp_path.iterdir()) == []
    assert "no file at" in refusal("inception", tmp_path / "nothing.pth")
    torch.save({"conv": torch.zeros(1)}, tmp_path / "other.pth")
    assert "no weights of Inception" in refusal("inception", tmp_path / "other.pth")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(str(tmp_path / "ran"))))
    assert "no weights of Inception" in refusal("inception", tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
    found = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: refuse_import(name) or found(name, *rest)
    )
    assert "pip install efficientnet-lite-pytorch" in refusal("efficientnet-lite0")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def refuse_import(name):
    if name.startswith("efficientnet"):
        raise ImportError(name)


def test_only_its_own_weights_make_a_distance_fid(shapes, inception_file, monkeypatch):
    extractor = features.load_feature_extractor(
        "inception",
        shapes.train_set,
        shapes.test_set,
        shapes.root,
        inception_weights=inception_file,
    )
    assert not extractor.published  # random weights
    monkeypatch.setattr(
        inceptionv3,
        "URL_INCEPTION_V3",
        f"https://x/weights-{hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8]}.pth",
    )
    assert features.load_feature_extractor(
        "inception",
        shapes.train_set,
        shapes.test_set,
        shapes.root,
        inception_weights=inception_file,
    ).published
    assert not shapes.classifier.published


def test_weights_that_lie_with_the_data_need_no_download(
    shapes, inception_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("it is there")
    )
    (tmp_path / inceptionv3.URL_INCEPTION_V3.rsplit("/", 1)[1]).write_bytes(
        inception_file.read_bytes()
    )
    assert (
        features.load_feature_extractor(
            "inception", shapes.train_set, shapes.test_set, tmp_path
        ).name
        == "inception"
    )


# ---- neighbours ----------------------------------------------------------------------------------


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


def test_copies_are_told_from_images_of_the_same_kind():
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
    )  # also those beyond the parts of equal size
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
    )  # a division by nothing
    assert same["copies"] == same["duplicates"] == 1


@pytest.mark.parametrize(
    "worse", [lambda x: blurred(x, 1.2), lambda x: (127.5 + (x.float() - 127.5) / 2).round().byte()]
)
def test_smooth_and_pale_samples_are_not_called_copies(shapes, worse):
    """Though they are nearer to all images, and to the training images, than real ones are."""
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
