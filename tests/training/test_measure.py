"""--eval-every: measures bits/dim and the classifier's distance without changing training."""

import csv
import json
import signal
import time

import pytest
import torch
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import fit

import evaluate
import train
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import newest_checkpoint
from evaluation import bits_per_dim
from runtime import signals
from training import measure as Measuring

pytestmark = pytest.mark.usefixtures("quick_classifier")


def trained(data, run_dir, *more):
    flags = "--max-steps 12 --dropout 0.3 --save-every 4".split()
    assert fit(data, run_dir, "--data-root", run_dir.parent, *flags, *more) == 0
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


MEASURE = ["--eval-every", "4", "--eval-images", "10"]


def test_it_is_logged_and_changes_nothing(tiny_data, tmp_path):
    plain, measured = (
        trained(tiny_data, tmp_path / "plain"),
        trained(tiny_data, tmp_path / "measured", *MEASURE),
    )
    rows = [row for row in measured if row["bits_per_dim"]]
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert all(
        float(row["classifier_distance"]) > 0 and float(row["bits_per_dim"]) > 0 for row in rows
    )
    assert [
        row for row in measured if not row["bits_per_dim"]
    ] == plain  # every loss, to the last digit
    one, other = (
        read_checkpoint_file(newest_checkpoint(tmp_path / name)) for name in ("plain", "measured")
    )
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])
    for name, value in one["ema"]["weights"].items():
        assert torch.equal(value, other["ema"]["weights"][name])
    events = EventAccumulator(str(tmp_path / "measured" / "tensorboard")).Reload()
    for name in ("bits_per_dim", "classifier_distance"):
        assert [event.step for event in events.Scalars(name)] == [4, 8, 12]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(
            [float(row[name]) for row in rows]
        )


def test_it_is_what_evaluate_measures(tiny_data, tmp_path, capsys):
    rows = trained(tiny_data, tmp_path / "run", *MEASURE)
    last = next(row for row in reversed(rows) if row["bits_per_dim"])
    capsys.readouterr()
    assert (
        evaluate.main(
            [
                "--ckpt",
                str(tmp_path / "run"),
                "--data-root",
                str(tmp_path),
                "--device",
                "cpu",
                "--precision",
                "32",
                "--seeds",
                "0",
                "--bound",
                "10",
                "--terms",
                str(Measuring.TERMS),
                "--num",
                "10",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert float(last["bits_per_dim"]) == pytest.approx(
        found["bits_per_dim"]["bound"]["mean"], rel=1e-4
    )
    assert float(last["classifier_distance"]) == pytest.approx(
        found["distances"]["classifier"]["to_train"]["frechet"]["mean"], rel=1e-3
    )


@pytest.mark.slow
def test_a_resumed_run_goes_on_measuring_or_begins_to(tiny_data, tmp_path):
    whole = trained(tiny_data, tmp_path / "whole", *MEASURE)
    trained(tiny_data, tmp_path / "parts", *MEASURE, "--max-steps", "6")
    assert trained(tiny_data, tmp_path / "parts", *MEASURE) == whole
    trained(tiny_data, tmp_path / "late", "--max-steps", "6")
    late = trained(tiny_data, tmp_path / "late", *MEASURE)
    assert [row["step"] for row in late if row["bits_per_dim"]] == ["8", "12"]
    assert [row["train_loss"] for row in late if row["train_loss"]] == [
        row["train_loss"] for row in whole if row["train_loss"]
    ]


def test_what_a_stop_left_out_is_measured_when_the_run_goes_on(tiny_data, tmp_path, monkeypatch):
    whole = trained(tiny_data, tmp_path / "whole", *MEASURE)
    stop, measure = signals.Stop(), bits_per_dim.variational_bound

    def interrupted(*args, **more):
        stop.signal = signal.SIGTERM
        return measure(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(bits_per_dim, "variational_bound", interrupted)
        assert (
            train.main(
                [
                    "--dataset",
                    str(tiny_data),
                    "--data-root",
                    str(tmp_path),
                    "--run-dir",
                    str(tmp_path / "parts"),
                    "--max-steps",
                    "12",
                    *TINY,
                    "--dropout",
                    "0.3",
                    "--save-every",
                    "4",
                    *MEASURE,
                ],
                stop,
            )
            != 0
        )
    assert trained(tiny_data, tmp_path / "parts", *MEASURE) == whole


def test_measuring_does_not_count_towards_max_time(tiny_data, tmp_path, monkeypatch):
    """Every measurement takes 1000 seconds, by a clock that is put forward."""
    ahead, monotonic, measure = [0], time.monotonic, bits_per_dim.variational_bound

    def slow(*args, **more):
        ahead[0] += 1000
        return measure(*args, **more)

    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    monkeypatch.setattr(bits_per_dim, "variational_bound", slow)
    trained(tiny_data, tmp_path / "run", *MEASURE, "--max-time", "500s")
    checkpoint = read_checkpoint_file(newest_checkpoint(tmp_path / "run"))
    assert ahead == [3000]
    assert checkpoint["global_step"] == 12
    assert checkpoint["elapsed"] < 500


def test_a_table_of_older_columns_is_kept(tiny_data, tmp_path):
    trained(tiny_data, tmp_path / "run", "--max-steps", "6")
    file = tmp_path / "run" / "metrics.csv"
    # as earlier versions wrote it, without the measured columns
    rows = [row[:-2] for row in csv.reader(file.open(newline=""))]
    csv.writer(file.open("w", newline="")).writerows(rows)
    after = trained(tiny_data, tmp_path / "run", *MEASURE)
    assert [row["step"] for row in after if row["train_loss"]] == [str(i) for i in range(1, 13)]


def test_without_labels_only_bits_per_dim_are_measured(tiny_data, tmp_path):
    import numpy as np

    with np.load(tiny_data) as archive:
        np.savez(tmp_path / "plain.npz", train_images=archive["train_images"])
    rows = trained(tmp_path / "plain.npz", tmp_path / "run", *MEASURE)
    found = [row for row in rows if row["bits_per_dim"]]
    assert [(row["step"], row["classifier_distance"]) for row in found] == [
        ("4", ""),
        ("8", ""),
        ("12", ""),
    ]
