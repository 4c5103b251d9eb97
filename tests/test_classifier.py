"""The classifier that judges samples, and the distance in its features."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import Classifier


@pytest.fixture(scope="module")
def bright_and_dark(tmp_path_factory):
    """200 images 32x32 of two kinds, and the folder in which the classifier is kept."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("classifier")
    labels = random.integers(0, 2, 200)
    images = (random.random((200, 32, 32, 1)) * 100 + 120 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(root / "kinds.npz", train_images=images, train_labels=labels, test_images=images[:50], test_labels=labels[:50])
    return root, torch.from_numpy(images.transpose(0, 3, 1, 2)), labels


def test_it_learns_is_kept_and_is_the_same_again(bright_and_dark, monkeypatch):
    root, images, labels = bright_and_dark
    judge = Classifier.of(str(root / "kinds.npz"), root)
    assert judge.accuracy == 1
    assert (judge(images).argmax(1).numpy() == labels).all()
    assert judge(images).shape == (200, 2)
    assert len(list(root.glob("kinds-classifier-*.pt"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "trained", lambda *_: pytest.fail("it was kept"))
        again = Classifier.of(str(root / "kinds.npz"), root)
    assert torch.equal(judge(images), again(images))
    monkeypatch.setattr(Classifier, "EPOCHS", 1)                             # another recipe is another classifier
    Classifier.of(str(root / "kinds.npz"), root)
    assert len(list(root.glob("kinds-classifier-*.pt"))) == 2


def test_the_distance_is_frechets_and_grows_with_noise(bright_and_dark):
    root, images, _ = bright_and_dark
    judge = Classifier.of(str(root / "kinds.npz"), root)
    random = torch.Generator().manual_seed(0)
    distance = Classifier.FrechetDistance(judge, images)
    found = [distance((images + torch.randn(images.shape, generator=random) * noise).clamp(0, 255).byte()) for noise in (0, 10, 40, 160)]
    assert distance(images) == pytest.approx(found[0], abs=1e-6)             # nothing is left of those before
    assert abs(found[0]) < 1e-3
    assert found == sorted(found)
    half, other = judge.features(images[:100]).double(), judge.features(images[100:]).double()
    cov_a, cov_b = torch.cov(half.T), torch.cov(other.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T    # Tr sqrt(A B) = Tr sqrt(sqrt(A) B sqrt(A))
    between = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    expected = ((half.mean(0) - other.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * between
    assert Classifier.FrechetDistance(judge, images[:100])(images[100:]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(("argv", "said"), [
    (["recipes.py", "--recipe", "nosuch"], "unknown recipe nosuch"), (["recipes.py", "--images", "150"], "multiple of 100"),
    (["samplers.py", "--ckpt", "/no/such"], "no checkpoint at"), (["samplers.py", "--ckpt", "x", "--grid", "even"], "invalid choice"),
])
def test_benchmarks_say_what_is_wrong(argv, said):
    process = subprocess.run([sys.executable, ROOT / "benchmarks" / argv[0], *argv[1:]], capture_output=True, text=True)
    assert process.returncode == 2
    assert said in process.stderr.splitlines()[-1]
