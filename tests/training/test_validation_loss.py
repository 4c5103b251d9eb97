"""Validation: the same noise every time, and no effect on training."""

import csv

import torch
from training_runs import contents, fit, losses, same


def test_validation_and_previews_do_not_disturb_training(tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "often", "--max-steps", 10, "--val-every", 2, "--dropout", 0.2)
    fit(tiny_data, tmp_path / "never", "--max-steps", 10, "--val-every", 100, "--dropout", 0.2)
    assert losses(tmp_path / "often") == losses(tmp_path / "never")
    assert same(
        contents(tmp_path / "often")["state_dict"], contents(tmp_path / "never")["state_dict"]
    )


def test_validation_draws_the_same_noise_every_time(tiny_data, tmp_path, monkeypatch):
    """With constant weights, the loss, its ten bins and the preview are constant, also after a
    resume."""
    monkeypatch.setattr(
        torch.nn.init, "zeros_", lambda w: torch.nn.init.constant_(w, 0.1)
    )  # the output depends on t and eps
    fit(tiny_data, tmp_path, "--max-steps", 4, "--val-every", 2, "--lr", 0)
    fit(tiny_data, tmp_path, "--max-steps", 6, "--val-every", 2, "--lr", 0)
    with open(tmp_path / "metrics.csv", newline="") as file:
        found = [tuple(row.values())[2:] for row in csv.DictReader(file) if row["val_loss"]]
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(set(found[0])) > 5
    assert len({p.read_bytes() for p in (tmp_path / "samples").glob("step_*.png")}) == 1
