"""The contents of metrics.json."""

import json

import pytest

import evaluate
from evaluation import bits_per_dim, results

pytestmark = pytest.mark.usefixtures("quick_classifier")


def test_what_was_measured_before_a_failure_is_kept(fresh_run, tiny_data, capsys, monkeypatch):
    def fails(*_, **__):
        raise ValueError("the probability flow cannot be integrated: a test")

    monkeypatch.setattr(bits_per_dim, "flow", fails)
    assert (
        evaluate.main(
            [
                "--ckpt",
                str(fresh_run),
                "--device",
                "cpu",
                "--bound",
                "4",
                "--num",
                "0",
                "--flow",
                "2",
            ]
        )
        == 2
    )
    assert "cannot be integrated" in capsys.readouterr().err
    assert (
        json.loads((fresh_run / "metrics.json").read_text())["bits_per_dim"]["bound"]["images"] == 4
    )


def test_what_is_not_finite_is_null(tmp_path):
    identity = dict.fromkeys(results.IDENTITY, "x")
    results.write_metrics(
        tmp_path / "metrics.json",
        identity,
        {"distances": {"classifier": {"frechet": {"sets": [1.0, float("nan")]}}}},
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["distances"]["classifier"][
        "frechet"
    ]["sets"] == [1, None]
