"""The classifier whose features compare samples with real images."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from Dataset import DiffSet
from evaluation import classifier

pytestmark = pytest.mark.usefixtures("quick_classifier")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """200 images 32x32 of two classes, bright and dark, and a folder for the classifier."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("classifier")
    labels = random.integers(0, 2, 200)
    images = (random.random((200, 32, 32, 1)) * 100 + 120 * labels[:, None, None, None]).astype(
        np.uint8
    )
    np.savez(
        root / "kinds.npz",
        train_images=images,
        train_labels=labels,
        test_images=images[:50],
        test_labels=np.concatenate([labels[:40], 1 - labels[40:50]]),
    )  # a fifth of the test_set labels is wrong
    return *(DiffSet(train, str(root / "kinds.npz")) for train in (True, False)), root


def test_it_learns_and_is_saved_and_reproducible(kinds, monkeypatch):
    train_set, test_set, root = kinds
    before = torch.get_rng_state()
    model = classifier.load_or_train(train_set, test_set, root)
    assert torch.equal(
        torch.get_rng_state(), before
    )  # a training that goes on afterwards is not disturbed
    assert float(model.accuracy) == pytest.approx(0.8)
    assert (model(train_set.images).argmax(1) == train_set.labels).all()
    assert model(train_set.images).shape == (200, 2)
    assert model.features(train_set.images[:3]).shape == (3, 4 * classifier.WIDE_WIDTH)
    assert len(list(root.glob("kinds-classifier-*.pt"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(classifier, "train_classifier", lambda *_: pytest.fail("trained again"))
        again = classifier.load_or_train(train_set, test_set, root)
    assert torch.equal(model(train_set.images), again(train_set.images))
    (kept,) = root.glob("kinds-classifier-*.pt")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert torch.equal(
        classifier.load_or_train(train_set, test_set, root)(train_set.images),
        again(train_set.images),
    )  # trained anew, the same
    monkeypatch.setattr(classifier, "MIN_STEPS", 21)  # another recipe is another classifier
    classifier.load_or_train(train_set, test_set, root)
    assert len(list(root.glob("kinds-classifier-*.pt"))) == 2


def test_images_of_another_size_are_resized(kinds):
    train_set, test_set, root = kinds
    model = classifier.load_or_train(train_set, test_set, root)
    large = train_set.images[:20].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (model(large).argmax(1) == train_set.labels[:20]).all()
    assert torch.allclose(
        model.features(large), model.features(train_set.images[:20]), rtol=0.1, atol=0.05
    )


def test_shifted_images_are_moved_by_whole_pixels_and_repeat_their_edge():
    x = torch.arange(36.0).view(1, 1, 6, 6).expand(64, 1, 6, 6)
    torch.manual_seed(0)
    found = classifier.shifted(x)
    grid = torch.nn.functional.pad(x[:1], (2, 2, 2, 2), mode="replicate")[0, 0]
    shift_of = {
        tuple(grid[i : i + 6, j : j + 6].flatten().tolist()): (i, j)
        for i in range(5)
        for j in range(5)
    }
    shifts = {shift_of[tuple(image.flatten().tolist())] for image in found}
    assert len(shifts) > 15  # of 25 possible ones: drawn for each image separately


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["recipes.py", "--recipe", "nosuch"], "unknown recipe nosuch"),
        (["recipes.py", "--images", "150"], "multiple of 100"),
    ],
)
def test_recipes_py_says_what_is_wrong(argv, said):
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / argv[0], *argv[1:]], capture_output=True, text=True
    )
    assert process.returncode == 2
    assert said in process.stderr.splitlines()[-1]
