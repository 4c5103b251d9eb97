"""A run that diverges: it skips steps, then restarts from a checkpoint with other noise."""

import pytest
import torch
from training_runs import (
    checkpoints,
    fit_run,
    losses,
    weights_hash,
)

from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import list_checkpoints, newest_checkpoint
from DiffusionModel import DiffusionModel


@pytest.fixture
def bad_steps(monkeypatch):
    """A function that makes the loss NaN at the steps for which `bad(attempt, step)` is true."""

    def spoil(bad):
        original = DiffusionModel.get_loss

        def get_loss(self, batch, step):
            bad_step = bad(batch[2].attempt, step)
            return original(self, batch, step) * (float("nan") if bad_step else 1)

        monkeypatch.setattr(DiffusionModel, "get_loss", get_loss)

    return spoil


@pytest.mark.parametrize("fused", [("cpu",), ()])
def test_a_step_that_is_not_finite_is_skipped(
    tiny_data, tmp_path, bad_steps, monkeypatch, capsys, fused
):
    monkeypatch.setattr("training.gradient_guard.FUSED", fused)
    bad_steps(lambda attempt, i: i in (5, 7))
    assert fit_run(tiny_data, tmp_path / "six", "--max-steps", 6, "--save-every", 5) == 0
    before, after = (
        read_checkpoint_file(file) for file in reversed(list_checkpoints(tmp_path / "six"))
    )
    assert (before["global_step"], after["global_step"]) == (5, 6)
    assert all(
        torch.equal(before["state_dict"][name], after["state_dict"][name])
        for name in before["state_dict"]
    )
    states = [c["optimizer_states"][0]["state"] for c in (before, after)]
    assert all(
        torch.equal(states[0][i][name], states[1][i][name])
        for i in states[0]
        for name in states[0][i]
    )
    assert losses(tmp_path / "six")[6] == "nan"
    why = "the loss or the gradient was not finite"
    assert f"1 step was skipped up to step 6: {why}" in capsys.readouterr().err
    assert fit_run(tiny_data, tmp_path / "ten", "--max-steps", 10) == 0
    assert f"2 steps were skipped up to step 10: {why}" in capsys.readouterr().err
    assert all(
        value.isfinite().all()
        for value in read_checkpoint_file(newest_checkpoint(tmp_path / "ten"))[
            "state_dict"
        ].values()
    )


def test_a_step_is_skipped_if_only_its_gradient_is_not_finite(tiny_data, tmp_path, monkeypatch):
    original = DiffusionModel.on_after_backward

    def overflow(self):
        original(self)
        if self.trainer.global_step == 5:
            next(self.parameters()).grad.view(-1)[0] = float("inf")

    monkeypatch.setattr(DiffusionModel, "on_after_backward", overflow)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 6, "--save-every", 5, "--clip", 0) == 0
    before, after = (read_checkpoint_file(file) for file in reversed(list_checkpoints(tmp_path)))
    assert all(
        torch.equal(before["state_dict"][name], after["state_dict"][name])
        for name in before["state_dict"]
    )


@pytest.mark.parametrize("interrupted", [(33,), pytest.param((28, 36, 45), marks=pytest.mark.slow)])
def test_bad_steps_in_a_row_restart_with_other_noise(
    tiny_data, tmp_path, bad_steps, capsys, interrupted
):
    """The loss is NaN only with the first noise. A run that is interrupted before, during or after
    the bad steps has the same result."""
    bad_steps(lambda attempt, i: 31 <= i < 40 and attempt == 0)
    assert fit_run(tiny_data, tmp_path / "run", "--max-steps", 60) == 0
    assert "the loss is not finite at step 40" in (told := capsys.readouterr().err)
    assert "step_00000025.ckpt with different noise, restart 1 of 3" in told
    assert losses(tmp_path / "run").keys() == set(range(1, 61))
    assert "nan" not in losses(tmp_path / "run").values()
    for at in interrupted:
        assert fit_run(tiny_data, tmp_path / str(at), "--max-steps", at) == 0
    capsys.readouterr()
    for at in interrupted:
        assert fit_run(tiny_data, tmp_path / str(at), "--max-steps", 60) == 0
    for at in interrupted:
        assert weights_hash(tmp_path / str(at)) == weights_hash(tmp_path / "run")
        assert losses(tmp_path / str(at)) == losses(tmp_path / "run")


def test_a_run_that_diverges_before_its_first_checkpoint_starts_anew(
    tiny_data, tmp_path, bad_steps, capsys
):
    bad_steps(lambda attempt, i: i >= 3 and attempt < 2)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 30) == 0
    assert "back to the start with different noise, restart 2 of 3" in capsys.readouterr().err
    assert read_checkpoint_file(newest_checkpoint(tmp_path))["noise"] == {"stream": 2, "skipped": 0}
    assert losses(tmp_path).keys() == set(range(1, 31))


def test_what_was_saved_before_going_back_to_the_start_is_set_aside(tiny_data, tmp_path, bad_steps):
    bad_steps(lambda attempt, i: i >= 12 and attempt == 0)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 8) == 0  # stopped between two saves
    assert fit_run(tiny_data, tmp_path, "--max-steps", 22) == 0
    assert checkpoints(tmp_path) == ["step_00000022.ckpt"]
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.skipped")] == [
        "step_00000008.ckpt.skipped"
    ]
    assert losses(tmp_path).keys() == set(range(1, 23))


def test_after_a_change_of_save_every_it_goes_back_to_the_newest_checkpoint(
    tiny_data, tmp_path, bad_steps, capsys
):
    bad_steps(lambda attempt, i: i >= 42 and attempt == 0)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 40, "--save-every", 20) == 0
    assert fit_run(tiny_data, tmp_path, "--max-steps", 55, "--save-every", 30) == 0
    assert "step_00000040.ckpt with different noise, restart 1 of 3" in capsys.readouterr().err
    assert losses(tmp_path).keys() == set(range(1, 56))


def test_it_gives_up_after_three_times_and_says_so(tiny_data, tmp_path, bad_steps, capsys):
    bad_steps(lambda attempt, i: i >= 31)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 100) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum("with different noise" in line for line in lines) == 3
    assert "for the 4th time" in lines[-1]
    assert "step_00000025.ckpt; try a smaller --lr" in lines[-1]
    assert load_model(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tiny_data, tmp_path, monkeypatch, capsys):
    original = DiffusionModel.on_train_batch_start

    def break_it(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.trainer.global_step == 49:
            next(self.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(DiffusionModel, "on_train_batch_start", break_it)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 60) == 1
    assert "step_00000025.ckpt; try a smaller --lr" in capsys.readouterr().err
    assert load_model(tmp_path)


def test_a_checkpoint_of_more_restarts_than_are_allowed_is_not_restarted(
    tiny_data, tmp_path, bad_steps, capsys, monkeypatch
):
    """It may be from a version that allowed more."""
    with monkeypatch.context() as patched:
        patched.setattr("training.fit.MAX_RESTARTS", 4)
        bad_steps(lambda attempt, i: i >= 31 and attempt < 4)
        assert fit_run(tiny_data, tmp_path, "--max-steps", 50) == 0
    capsys.readouterr()
    bad_steps(lambda attempt, i: i >= 51 and attempt < 6)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 100) == 1
    assert "with different noise" not in capsys.readouterr().err
