"""Runs of train.py --clusters: training, resuming, sampling, evaluation."""

import json

import numpy as np
import pytest
import torch
from training_runs import fit, losses, weights_hash

import evaluate
import Inference
from checkpoints.checkpoint import load_model
from sampling.plan import labels_in_turn

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
    words = ["--ckpt", str(clustered), "--steps", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert Inference.main([*words, "--class", "cluster 2", "--num", "2"]) == 0
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["arr_1"].tolist() == [2, 2]
    assert "unknown class '3'" in refused(Inference.main, *words, "--class", "3")


def test_clusters_are_not_mistaken_for_labels(clustered, tiny_data):
    words = ["--ckpt", str(clustered), "--data-root", str(tiny_data.parent), "--device", "cpu"]
    words += ["--num", "10", "--steps", "2", "--seeds", "0", "--bound", "4"]
    assert evaluate.main(words) == 0
    measured = json.loads((clustered / "metrics.json").read_text())
    (distances,) = measured["distances"].values()
    assert "requested" not in json.dumps(distances)


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
        fit(tiny_data, tmp_path / "run", *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_number_of_clusters_is_refused(clustered, tiny_data, capsys):
    with pytest.raises(SystemExit, match="2"):
        fit(tiny_data, clustered, *WORDS, "--clusters", "4", "--max-steps", 9)
    assert "it was trained with --clusters 3, not --clusters 4" in capsys.readouterr().err
