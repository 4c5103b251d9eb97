"""Feature extractors."""

import builtins
import hashlib
import pickle
import urllib.error

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3

from evaluation import features


def test_batches_change_no_features_and_gray_is_repeated_in_three_channels(shapes):
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


def test_features_of_real_images_are_cached_and_extracted_again_if_damaged(shapes, monkeypatch):
    found = features.reference_features(shapes.classifier, shapes.test_set, shapes.root, 50)
    with monkeypatch.context() as patched:
        patched.setattr(features, "extract_features", lambda *_: pytest.fail("extracted again"))
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


def test_only_the_published_inception_weights_give_fid(shapes, inception_file, monkeypatch):
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


def test_weights_in_the_data_folder_need_no_download(shapes, inception_file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded again")
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
