"""Bits/dim by evaluate.py: the table, the line of JSON and metrics.json."""

import numpy as np
import pytest
import torch
from measuring import bits

from checkpoints.checkpoint import load_model
from Dataset import DiffSet
from diffusion import likelihood
from evaluation import bits_per_dim
from evaluation.tables import bits_per_dim_lines
from runtime.randomness import Purpose
from sampling.noise import Noise

pytestmark = pytest.mark.usefixtures("quick_classifier")


def test_bits_per_dim_as_a_table_and_a_line(fresh_run, tiny_data, capsys):
    table, found = bits(capsys, fresh_run, tiny_data, "--terms", "4", "--flow", "3")
    assert found["bits_per_dim"]["bound"]["images"] == 20
    assert found["bits_per_dim"]["flow"]["images"] == 3
    assert "mean_28x28" not in found["bits_per_dim"]["bound"]
    assert (found["weights"], found["step"], found["bits_per_dim"]["bound"]["seed"]) == (
        "ema",
        12,
        0,
    )
    assert found["checkpoint"] == str(fresh_run / "checkpoints" / "step_00000012.ckpt")
    assert (
        f"{found['checkpoint_sha256']}  step_00000012.ckpt\n"
        == (fresh_run / "checkpoints" / "step_00000012.ckpt.sha256").read_text()
    )
    assert f"{found['bits_per_dim']['bound']['mean']:.3f} +- " in table[1]
    assert "probability flow" in table[2]


def test_averages_of_other_lengths_are_measured_too(conditional_run, tiny_data, capsys):
    found = [
        bits(capsys, conditional_run, tiny_data, "--terms", "2", *more)[1]
        for more in ((), ("--ema-length", "0.1"))
    ]
    assert [one["weights"] for one in found] == ["ema", "ema of length 0.1"]
    assert found[0]["bits_per_dim"]["bound"]["mean"] != found[1]["bits_per_dim"]["bound"]["mean"]


def test_neither_batches_nor_more_images_change_what_is_measured(fresh_run, tiny_data, capsys):
    (_, whole), (_, parts) = (
        bits(capsys, fresh_run, tiny_data, "--exact", "--batch-size", n) for n in ("20", "7")
    )
    assert whole["bits_per_dim"]["bound"]["mean"] == pytest.approx(
        parts["bits_per_dim"]["bound"]["mean"], rel=1e-5
    )
    assert whole["terms"] == pytest.approx(parts["terms"], rel=1e-4, abs=1e-7)
    _, other = bits(capsys, fresh_run, tiny_data, "--exact", "--seeds", "1")
    assert other["bits_per_dim"]["bound"]["mean"] != whole["bits_per_dim"]["bound"]["mean"]
    model, test_set = load_model(fresh_run).model, DiffSet(False, str(tiny_data), image_size=8)
    few, many = (
        bits_per_dim.variational_bound(model, test_set, count, None, title="")["mean"] * count
        for count in (7, 8)
    )
    last = test_set.subset()[7:8]  # the eighth has the same noise alone as among eight
    noise = Noise(0, last.tolist(), (3, 8, 8), purpose=Purpose.LIKELIHOOD_NOISE)
    alone = likelihood.bound(model, test_set.images[last].float() / 127.5 - 1, noise).sum(0)
    assert many - few == pytest.approx(float(alone), rel=1e-3)


def test_the_exact_bound_is_the_sum_of_its_terms(fresh_run, tiny_data, capsys):
    table, found = bits(capsys, fresh_run, tiny_data, "--exact")
    bound = found["bits_per_dim"]["bound"]
    assert len(found["terms"]) == 21  # T = 20, L_0 .. L_T
    assert sum(found["terms"]) == pytest.approx(bound["mean"])
    assert sum(float(line.split()[-1]) for line in table[2:]) == pytest.approx(
        bound["mean"], abs=1e-3
    )
    model, test_set = load_model(fresh_run).model, DiffSet(False, str(tiny_data), image_size=8)
    x_0 = test_set.images.float() / 127.5 - 1
    again = likelihood.bound(
        model, x_0, Noise(0, range(20), (3, 8, 8), purpose=Purpose.LIKELIHOOD_NOISE)
    ).sum(0)
    assert len(again) == 20
    assert float(again.mean()) == pytest.approx(bound["mean"], rel=1e-5)
    assert bound["standard_error"] == pytest.approx(
        float(again.std()) / len(again) ** 0.5, rel=1e-4
    )


def test_the_bound_depends_on_the_labels(conditional_run, tiny_data, capsys):
    """A conditional model gets the labels: with other labels its bound is different."""
    _, found = bits(capsys, conditional_run, tiny_data, "--exact")
    model, test_set = (
        load_model(conditional_run).model,
        DiffSet(False, str(tiny_data), image_size=8),
    )
    x_0 = test_set.images[:20].float() / 127.5 - 1
    right, wrong = (
        float(
            likelihood.bound(
                model, x_0, Noise(0, range(20), (3, 8, 8), purpose=Purpose.LIKELIHOOD_NOISE), y
            )
            .sum(0)
            .mean()
        )
        for y in (test_set.labels[:20], 1 - test_set.labels[:20])
    )
    assert found["bits_per_dim"]["bound"]["mean"] == pytest.approx(right, rel=1e-5)
    assert right != pytest.approx(wrong, rel=1e-4)


def test_bits_per_dim_of_padded_digits_are_also_given_for_28x28():
    test_set = type("Unseen", (), {"padded": True})
    found = bits_per_dim.summarize(torch.tensor([1.0, 3.0]), test_set)
    assert found["mean"] == 2
    assert found["mean_28x28"] == pytest.approx(2 * 1024 / 784)
    assert found["standard_error"] == pytest.approx(1)


def test_images_sorted_by_class_are_measured_as_if_they_were_mixed(tmp_path):
    """A folder's images come class by class: a subset has images of all classes."""
    labels = np.arange(4).repeat(100)
    images = np.full((400, 8, 8, 3), 60, np.uint8) * (labels[:, None, None, None] + 1).astype(
        np.uint8
    )
    np.savez(tmp_path / "sorted.npz", train_images=images, train_labels=labels)
    data = DiffSet(True, str(tmp_path / "sorted.npz"), image_size=8)
    assert sorted(data.subset().tolist()) == list(range(360))
    assert set(np.bincount(data.labels[data.subset(100)]) // 15) <= {1, 2}
    assert torch.equal(data.subset(50), data.subset()[:50])
    labels = [y for _, _, y in bits_per_dim.batches(data, 40, 10, "cpu", "")]
    assert [len(set(y.tolist())) for y in labels] == [4, 4, 4, 4]


@pytest.mark.parametrize(("mean", "explained"), [(7.9, False), (8.1, True)])
def test_values_above_those_of_uniform_noise_are_explained(mean, explained):
    bound = {"mean": mean, "standard_error": 0.1, "images": 5}
    (line,) = bits_per_dim_lines({"bound": bound})
    assert ("above 8: see docs/evaluate.md" in line) == explained
