"""Noise schedules, against diffusers and against their formulas."""

import numpy as np
import pytest
import torch
from models import model

from diffusion import schedules
from diffusion.settings import ModelSettings, read_schedule
from DiffusionModel import DiffusionModel


def test_cosine_equals_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2").betas
    assert np.abs(schedules.betas("cosine", 1000) - theirs.numpy()).max() < 1e-6


def test_sigmoid_falls_from_1_to_0_and_is_symmetric():
    alpha_bar = np.cumprod(1 - schedules.betas("sigmoid", 1000))
    expected = (1 / (1 + np.exp(6 * np.arange(1, 1001) / 1000 - 3)) - 1 / (1 + np.e**3)) / (
        1 / (1 + np.e**-3) - 1 / (1 + np.e**3)
    )
    np.testing.assert_allclose(alpha_bar[:-1], expected[:-1], atol=1e-12)
    assert alpha_bar[499] == pytest.approx(0.5, abs=1e-9)
    assert 0 < alpha_bar[-1] < 1e-5  # the last beta is cut at 0.999


def test_a_table_of_betas_is_the_schedule_it_was_made_from(tmp_path):
    (tmp_path / "betas.txt").write_text(
        "\n".join(map(repr, schedules.betas("linear", 50).tolist()))
    )
    table = schedules.read_betas(str(tmp_path / "betas.txt"))
    assert model(T=50, betas=table).schedule == model(T=50).schedule
    assert DiffusionModel(**model(T=50, betas=table).hparams).schedule == model(T=50).schedule
    with pytest.raises(ValueError, match="50 numbers, not T = 51"):
        model(T=51, betas=table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "unknown schedule .*cosin.*did you mean cosine"),
        ("0.1 x", "cannot be read"),
        ("", "must hold"),
        ("0.1 1.5", "numbers between 0 and 1"),
    ],
)
def test_bad_schedules_are_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "cosin").write_text(text)
    with pytest.raises(ValueError, match=said):
        schedules.read_betas("cosin" if text is None else str(tmp_path / "cosin"))


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_zero_terminal_snr_equals_diffusers_and_x_T_is_pure_noise(schedule):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    beta = schedules.betas(schedule, 1000)
    ours = schedules.zero_terminal_snr(beta)
    assert np.abs(ours - rescale_zero_terminal_snr(torch.from_numpy(beta)).numpy()).max() < 1e-6
    m = model(schedule=schedule, zero_terminal_snr=True, parameterization="v")
    assert m.alpha_bar(1000) == 0
    assert m.alpha_bar(1) == pytest.approx(1 - beta[0], abs=1e-12)
    eps = torch.randn(2, 1, 4, 4)
    assert torch.equal(m.q_sample(torch.ones(2, 1, 4, 4), torch.tensor([1000, 1000]), eps), eps)
    with pytest.raises(ValueError, match="no trace of the image at t = 1000"):
        model(schedule=schedule, zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(T=1, zero_terminal_snr=True, parameterization="v"), "must decrease"),
        (dict(T=2, betas=(1e-17, 0.5)), "must decrease"),
        (
            dict(zero_terminal_snr=True, parameterization="v", weighting="min-snr"),
            r"choose plain, min-snr\+1 or edm",
        ),
        (dict(T=500, beta_small=0.5, beta_large=0.9, parameterization="v"), "must decrease"),
    ],
)
def test_betas_that_cannot_be_trained_with_are_refused(settings, said):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=said):
        model(**settings)


def test_a_number_of_steps_that_is_not_that_of_the_file_is_refused(tmp_path):
    """The default T gives way to the number of betas in the file."""
    file = tmp_path / "betas.txt"
    file.write_text("0.01\n" * 50)
    assert read_schedule(ModelSettings(schedule=str(file))).T == 50
    assert read_schedule(ModelSettings(schedule=str(file), T=50)).T == 50
    with pytest.raises(ValueError, match="has 50 betas, not --T 40: leave out --T"):
        read_schedule(ModelSettings(schedule=str(file), T=40))
