"""Models that come with the repository, by name."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import Inference
from checkpoints.checkpoint import load_model
from Dataset import DiffSet
from image_data.downloads import DOWNLOADS
from runtime.pretrained import FOLDER, is_pretrained, model_path, pretrained_names

LARGEST = 4_900_000  # bytes, with the early average; CIFAR-10's, trained on a GPU, is exempt


def test_there_is_one_of_each_dataset():
    assert {*DOWNLOADS, "shapes"} == {*pretrained_names()}


@pytest.mark.parametrize("name", pretrained_names())
def test_it_is_small_and_knows_its_dataset(name):
    file = model_path(name)
    assert is_pretrained(file)
    assert name == "cifar10" or file.stat().st_size < LARGEST
    loaded = load_model(file)
    assert loaded.model.settings.dataset == name
    assert loaded.step > 0
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    with safe_open(file, framework="pt") as opened:
        names = [*opened.keys()]
        assert {opened.get_tensor(name).dtype for name in names} == {torch.float16}
        assert json.loads(opened.metadata()["settings"])


def test_the_images_that_it_was_trained_on_are_known():
    assert load_model(model_path("shapes")).trained_on == DiffSet(True, "shapes").digest()
    for name in pretrained_names():
        assert re.fullmatch("[0-9a-f]{16}", load_model(model_path(name)).trained_on), name


@pytest.mark.parametrize("name", pretrained_names())
def test_it_is_in_the_table_of_models(name):
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()


def test_a_path_that_exists_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_path("cifar10") == FOLDER / "cifar10.safetensors"
    (tmp_path / "cifar10").mkdir()
    assert model_path("cifar10") == Path("cifar10")
    assert model_path("runs/cifar10") == Path("runs/cifar10")


def test_an_unknown_name_gets_a_suggestion(refused):
    with pytest.raises(argparse.ArgumentTypeError, match="did you mean cifar10"):
        model_path("cifra10")
    assert "did you mean mnist" in refused(Inference.main, "--ckpt", "minst")


def test_a_pretrained_model_samples_what_is_asked_for(tmp_path):
    words = ["--ckpt", "shapes", "--class", "star", "--num", "2", "--steps", "2", "--device", "cpu"]
    assert Inference.main([*words, "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["arr_0"].shape == (2, 32, 32, 3)
        assert samples["arr_1"].tolist() == [4, 4]  # circle, triangle, square, pentagon, star
