"""The checks of a run directory by evaluate.py --doctor."""

import json
import os

import numpy as np
import pytest
import torch

import evaluate
from Dataset import DiffSet
from DiffusionModel import DiffusionModel
from evaluation import doctor, sample_checks


@pytest.fixture
def make_run(tmp_path, tiny_data):
    """Makes a run directory with chosen losses, samples and updates; by default a healthy one."""

    def make(
        name="run", train=(1.0, 0.3, 0.2), valid=(0.5, 0.2), samples=None, ema=5000, **settings
    ):
        run = tmp_path / name
        (run / "images").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        rows = [f"{i},{loss}," for i, loss in enumerate(train)] + [
            f"{len(train) + i},,{loss}" for i, loss in enumerate(valid)
        ]
        (run / "metrics.csv").write_text("\n".join(["step,train_loss,val_loss", *rows]) + "\n")
        (run / "config.json").write_text(
            json.dumps({"settings": {"dataset": str(tiny_data), **settings}, "preset": "laptop"})
        )
        model = DiffusionModel(width=8, mults=(1,), attention=(), blocks=1, size=8)
        torch.save(
            {
                "global_step": ema,
                "elapsed": 1.0,
                "hyper_parameters": dict(model.hparams),
                "state_dict": model.state_dict(),
                "ema": {"n": ema, "weights": model.unet.state_dict()},
                "course": {},
                "noise": {},
            },
            run / "checkpoints" / "step_00005000.ckpt",
        )
        real = DiffSet(True, str(tiny_data), image_size=8).images.permute(0, 2, 3, 1).numpy()
        np.savez(run / "images" / "samples.npz", arr_0=real[:40] if samples is None else samples)
        return run

    return make


def names_of_wrong(run):
    """The names of the findings that look wrong."""
    return {finding.name for finding in doctor.examine(run) if finding.good is False}


def test_a_healthy_run_has_nothing_wrong(make_run):
    run = make_run()
    assert names_of_wrong(run) == set()
    assert "nothing looks wrong" in doctor.report(doctor.examine(run))


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ({"train": (1.0, "nan", 0.2)}, "losses"),
        ({"train": (0.2, 0.3, 0.4), "valid": (0.3,)}, "training"),
        ({"valid": (0.7, 0.69), "train": (1.0, 0.3, 0.2)}, "train/validation gap"),
        ({"valid": (0.2, 0.5), "train": (1.0, 0.5, 0.4)}, "validation"),
        ({"ema": 300}, "EMA"),
        ({"samples": np.full((9, 8, 8, 3), 150, np.uint8)}, "constant samples"),
        ({"samples": np.full((9, 8, 8, 3), (200, 50, 50), np.uint8)}, "constant samples"),
        (
            {"samples": np.random.default_rng(0).integers(0, 60, (40, 8, 8, 3)).astype(np.uint8)},
            "colours",
        ),
        (
            {
                "samples": np.random.default_rng(0).integers(0, 2, (40, 8, 8, 3)).astype(np.uint8)
                * 255
            },
            "saturation",
        ),
        (
            {
                "samples": np.repeat(
                    np.random.default_rng(0).integers(90, 160, (1, 8, 8, 3)), 9, 0
                ).astype(np.uint8)
            },
            "equal samples",
        ),
    ],
)
def test_each_trouble_is_named(make_run, made, what):
    assert what in names_of_wrong(make_run(**made))


def test_tint_and_darkness_are_told_apart(make_run, tiny_data):
    real = (
        DiffSet(True, str(tiny_data), image_size=8).images.permute(0, 2, 3, 1).numpy().astype(float)
    )
    tinted, dark = real[:40] + np.array([90, 0, 0]), real[:40] * 0.5
    for name, samples, said in (
        ("tinted", tinted, "are tinted"),
        ("dark", dark, "too dark"),
        ("bright", real[:40] + 120, "too bright"),
    ):
        found = doctor.examine(make_run(name, samples=samples.clip(0, 255).astype(np.uint8)))
        assert said in next(one.advice for one in found if one.name == "colours")


def test_a_weighted_loss_is_not_compared_with_the_validation(make_run):
    found = {
        one.name: one.good
        for one in doctor.examine(
            make_run(train=(1.0, 0.3, 0.1), valid=(0.9, 0.8), weighting="min-snr")
        )
    }
    assert found["train/validation gap"] is None


def test_the_validation_loss_is_compared_with_similar_runs(make_run):
    make_run("first", valid=(0.2,))
    make_run("second", valid=(0.22,))
    make_run("another", valid=(0.9,), parameterization="eps")  # not of the same kind
    make_run("young", valid=(0.9,), train=(1.0,))  # after one step, not four
    make_run("short", valid=(0.9,), T=200)
    assert "other runs" not in names_of_wrong(make_run("third", valid=(0.5, 0.24)))
    assert "other runs" in names_of_wrong(make_run("fourth", valid=(0.5, 0.4), train=(1, 0.5, 0.4)))


def test_what_is_missing_is_not_called_wrong(make_run):
    run = make_run()
    (run / "config.json").unlink()
    found = {one.name: one for one in doctor.examine(run)}
    assert (found["colours"].good, found["other runs"].good) == (None, None)
    assert "config.json names none" in found["colours"].observation
    os.utime(run / "images" / "samples.npz", (1, 1))
    found = {one.name: one for one in doctor.examine(run)}
    assert "older than the newest checkpoint" in found["samples"].observation
    (run / "images" / "samples.npz").unlink()
    found = {one.name: one.good for one in doctor.examine(run)}
    assert found["samples"] is None
    assert False not in found.values()
    (run / "checkpoints" / "step_00005000.ckpt").write_bytes(b"no checkpoint")
    assert "checkpoint" in names_of_wrong(run)


def test_the_doctor_by_command(tiny_run, tiny_data, capsys):
    assert evaluate.main(["--ckpt", str(tiny_run), "--doctor", "--dataset", str(tiny_data)]) == 0
    out = capsys.readouterr().out
    assert "LOOK  EMA: an average over 12 updates" in out
    assert "look wrong" in out.splitlines()[-1]


def test_the_doctor_downloads_nothing(tmp_path):
    """Not even for a file of a known name that does not exist."""
    samples = np.zeros((4, 32, 32, 1), np.uint8)
    for dataset in ("mnist", str(tmp_path / "mnist.npz")):
        with pytest.raises(ValueError, match=r"no mnist\.npz in"):
            sample_checks.read_real(dataset, str(tmp_path), samples, None)
