"""evaluate.py by command: what it measures, says and writes."""

import json

import numpy as np
import pytest
import torch

import Checkpoint
import evaluate
import Likelihood
from Dataset import DiffSet
from Sampler import Noise


def measure(capsys, run, data, *more):
    assert evaluate.main(["--ckpt", str(run), "--dataset", str(data), "--num", "20", "--device", "cpu", *more]) == 0
    *table, said, line = capsys.readouterr().out.splitlines()
    assert said.endswith(f"written to {run / 'metrics.json'}")
    found, written = json.loads(line), json.loads((run / "metrics.json").read_text())
    terms = written["bits_per_dim"]["bound"].pop("terms", None)              # a thousand numbers are for the file alone
    assert written == found
    return table, found | {"terms": terms}


def test_it_prints_a_table_and_a_line_and_writes_the_line(tiny_run, tiny_data, capsys):
    table, found = measure(capsys, tiny_run, tiny_data, "--samples", "4", "--flow", "3")
    assert found["bits_per_dim"]["bound"]["images"] == 20
    assert found["bits_per_dim"]["flow"]["images"] == 3
    assert "mean_28x28" not in found["bits_per_dim"]["bound"]
    assert (found["weights"], found["seed"], found["split"]) == ("ema", 0, "test")
    assert table[0] == "bits/dim of tiny, 3x8x8, unseen images"
    assert f"{found['bits_per_dim']['bound']['mean']:.3f} +- " in table[1]
    assert "probability flow" in table[2]


def test_neither_batches_nor_more_images_change_what_is_measured(tiny_run, tiny_data, capsys):
    (_, whole), (_, parts) = (measure(capsys, tiny_run, tiny_data, "--exact", "--batch-size", n) for n in ("20", "7"))
    assert whole["bits_per_dim"]["bound"]["mean"] == pytest.approx(parts["bits_per_dim"]["bound"]["mean"], rel=1e-5)
    assert whole["terms"] == pytest.approx(parts["terms"], rel=1e-4, abs=1e-7)
    _, other = measure(capsys, tiny_run, tiny_data, "--exact", "--seed", "1")
    assert other["bits_per_dim"]["bound"]["mean"] != whole["bits_per_dim"]["bound"]["mean"]


def test_exact_is_the_bound_and_its_terms_are_its_sum(tiny_run, tiny_data, capsys):
    table, found = measure(capsys, tiny_run, tiny_data, "--exact")
    bound = found["bits_per_dim"]["bound"]
    assert len(found["terms"]) == 21                                         # T = 20, L_0 .. L_T
    assert sum(found["terms"]) == pytest.approx(bound["mean"])
    assert sum(float(line.split()[-1]) for line in table[3:]) == pytest.approx(bound["mean"], abs=1e-3)
    model, unseen = Checkpoint.load_model(tiny_run), DiffSet(False, str(tiny_data), image_size=8)
    x_0 = unseen.images[:20].float() / 127.5 - 1
    again = Likelihood.bound(model, x_0, Noise(0, range(20), (3, 8, 8), purpose=Likelihood.NOISE)).sum(0)
    assert len(again) == len(unseen.images[:20])
    assert float(again.mean()) == pytest.approx(bound["mean"], rel=1e-5)
    assert bound["standard_error"] == pytest.approx(float(again.std()) / len(again)**0.5, rel=1e-4)


def test_classes_are_told(conditional_run, tiny_data, capsys):
    """A model that knows labels is told them: with the other label its bound is another one."""
    _, found = measure(capsys, conditional_run, tiny_data, "--exact")
    model, unseen = Checkpoint.load_model(conditional_run), DiffSet(False, str(tiny_data), image_size=8)
    x_0 = unseen.images[:20].float() / 127.5 - 1
    right, wrong = (float(Likelihood.bound(model, x_0, Noise(0, range(20), (3, 8, 8), purpose=Likelihood.NOISE), y).sum(0).mean())
                    for y in (unseen.labels[:20], 1 - unseen.labels[:20]))
    assert found["bits_per_dim"]["bound"]["mean"] == pytest.approx(right, rel=1e-5)
    assert right != pytest.approx(wrong, rel=1e-4)


def test_padded_digits_are_also_counted_by_their_own_values():
    unseen = type("Unseen", (), {"name": "mnist", "size": 32})
    found = evaluate.of_image(torch.tensor([1.0, 3.0]), unseen)
    assert found["mean"] == 2
    assert found["mean_28x28"] == pytest.approx(2 * 1024 / 784)
    assert found["standard_error"] == pytest.approx(1)


def test_what_is_wrong_is_one_line(tiny_run, conditional_run, tiny_data, tmp_path, refused):
    np.savez(tmp_path / "gray.npz", train_images=np.zeros((9, 8, 8, 1), np.uint8), train_labels=np.zeros(9, int))
    assert "no checkpoint at" in refused(evaluate.main, "--ckpt", tmp_path / "none")
    assert "unknown dataset 'tiny'" in refused(evaluate.main, "--ckpt", tiny_run)
    assert "has 1 channels, and the model 3" in refused(evaluate.main, "--ckpt", tiny_run, "--dataset", tmp_path / "gray.npz")
    assert "more than the 20 images" in refused(evaluate.main, "--ckpt", tiny_run, "--dataset", tiny_data, "--flow", 21)
    np.savez(tmp_path / "more.npz", train_images=np.zeros((9, 8, 8, 3), np.uint8), train_labels=np.full(9, 2))
    more = tmp_path / "more.npz"
    assert "the label 2, and the model knows 2 classes" in refused(evaluate.main, "--ckpt", conditional_run, "--dataset", more)
    assert "2 or more" in refused(evaluate.main, "--ckpt", tiny_run, "--dataset", tiny_data, "--flow", 1)
