"""Runs of train.py --clusters: training, resuming, sampling, evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_runs import fit, losses, weights_hash

import evaluate
import Inference
import train
from checkpoints.checkpoint import load_model
from Dataset import DiffSet
from diffusion.settings import check_settings
from evaluation.bits_per_dim import known_labels
from evaluation.preparation import check_labels
from sampling.plan import labels_in_turn
from training import setup

WORDS = ["--clusters", "3", "--val-every", "3", "--save-every", "3"]


@pytest.fixture(scope="module")
def clustered(tiny_data, tmp_path_factory):
    """A run with three clusters, in two calls."""
    run_dir = tmp_path_factory.mktemp("clusters") / "run"
    for steps in (3, 6):
        assert fit(tiny_data, run_dir, *WORDS, "--max-steps", steps) == 0
    return run_dir


def test_clusters_are_the_classes_of_the_model(clustered):
    settings = load_model(clustered).model.settings
    assert settings.classes == settings.clusters == 3
    assert settings.class_names == ("cluster 0", "cluster 1", "cluster 2")
    assert sum(settings.cluster_shares) == pytest.approx(1)
    assert sorted(settings.cluster_shares, reverse=True) == list(settings.cluster_shares)


def test_unseen_images_have_the_clusters_of_the_training_images(tiny_data):
    data, unseen = (DiffSet(train, str(tiny_data)) for train in (True, False))
    dark = unseen.labels == 0
    setup.label_by_cluster(data, unseen, 2)
    assert unseen.classes == data.classes == ("cluster 0", "cluster 1")
    (found,) = unseen.labels[dark].unique()
    (other,) = unseen.labels[~dark].unique()
    assert found != other


def test_a_resumed_run_has_the_same_clusters(clustered, tiny_data, tmp_path):
    assert fit(tiny_data, tmp_path, *WORDS, "--max-steps", 6) == 0
    assert weights_hash(tmp_path) == weights_hash(clustered)
    assert losses(tmp_path) == losses(clustered)


def test_samples_have_the_frequencies_of_the_clusters(clustered):
    model = load_model(clustered).model
    labels = labels_in_turn(model, range(1000))
    shares = torch.bincount(torch.tensor(labels), minlength=3) / 1000
    assert (shares - torch.tensor(model.settings.cluster_shares)).abs().max() < 0.01
    assert labels_in_turn(model, range(100, 110)) == labels[100:110]


def test_one_cluster_can_be_sampled(clustered, tmp_path, refused):
    found = []
    for name in ("cluster 2", "2", "cluster 0"):
        out = tmp_path / name
        words = ["--ckpt", str(clustered), "--steps", "2", "--device", "cpu", "--out", str(out)]
        assert Inference.main([*words, "--class", name, "--num", "2"]) == 0
        with np.load(out / "samples.npz") as samples:
            assert samples.files == ["arr_0"]  # clusters are not labels of the dataset
            found.append(samples["arr_0"])
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
    assert "unknown class '3'" in refused(Inference.main, *words, "--class", "3")


def test_clusters_are_not_mistaken_for_labels(clustered, tiny_data):
    words = ["--ckpt", str(clustered), "--data-root", str(tiny_data.parent), "--device", "cpu"]
    words += ["--num", "10", "--steps", "2", "--seeds", "0", "--bound", "4"]
    assert evaluate.main(words) == 0
    measured = json.loads((clustered / "metrics.json").read_text())
    (distances,) = measured["distances"].values()
    assert "shares" in distances
    assert "as_asked" not in distances
    y = torch.zeros(4, dtype=torch.int64)
    assert known_labels(load_model(clustered).model, y) is None


def test_the_dataset_may_have_more_labels_than_there_are_clusters(clustered):
    many = SimpleNamespace(labels=torch.arange(10), name="many")
    check_labels(load_model(clustered).model, many, many)  # type: ignore[arg-type]


def test_the_feature_extractor_of_eval_every_knows_the_labels(tiny_data, tmp_path, monkeypatch):
    seen = []
    load = setup.load_feature_extractor
    monkeypatch.setattr(
        setup,
        "load_feature_extractor",
        lambda name, data, *rest: seen.append(data.classes) or load(name, data, *rest),
    )
    words = ["--eval-every", "2", "--eval-images", "4", "--max-steps", "2"]
    assert fit(tiny_data, tmp_path, *WORDS, *words) == 0
    assert seen == [("0", "1")]


def test_clusters_of_cifar10_have_the_guidance_of_the_preset():
    words = ["--dataset", "cifar10"]
    assert train.parse_with_preset(words, "laptop").guidance == 4
    assert train.parse_with_preset([*words, "--clusters", "10"], "laptop").guidance == 1.5


def test_shares_that_do_not_fit_are_refused(clustered):
    settings = {**load_model(clustered).model.hparams, "clusters": 4}
    with pytest.raises(ValueError, match="3 numbers for 4 clusters and 3 classes"):
        check_settings(settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clusters", "1"], "--clusters 1 has only one cluster: give at least 2"),
        (["--clusters", "20000"], "--clusters must be a whole number from 0 to 10000"),
        (["--clusters", "9999"], "choose at most"),
        (["--clusters", "3", "--condition", "gray"], "cannot be combined with --condition"),
        (["--clusters", "3", "--label-dropout", "0"], "needs --label-dropout above 0"),
    ],
)
def test_impossible_clusters_are_refused(words, message, tiny_data, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        fit(tiny_data, tmp_path / "run", *words, "--max-steps", 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_number_of_clusters_is_refused(clustered, tiny_data, capsys):
    with pytest.raises(SystemExit, match="2"):
        fit(tiny_data, clustered, *WORDS, "--clusters", "4", "--max-steps", 9)
    assert "it was trained with --clusters 3, not --clusters 4" in capsys.readouterr().err
