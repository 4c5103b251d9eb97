"""The times and weights of the loss, against their papers."""

import numpy as np
import pytest
import torch
from models import model, perturbed, plain_errors, predicts, seeded

from diffusion import objective
from diffusion.draws import Draws
from runtime.randomness import Purpose

T = torch.arange(1, 1001)


@pytest.mark.parametrize("kind", ["min-snr", "min-snr+1", "p2", "edm"])
def test_a_weighting_is_the_same_whatever_the_network_predicts(kind):
    """Networks that predict the same x_0 have the same loss, in eps, x0 and v."""
    x_0, eps, wrong = (
        torch.rand(999, 1, 2, 2) * 2 - 1,
        torch.randn(999, 1, 2, 2),
        torch.rand(999, 1, 2, 2),
    )
    losses, t = [], T[:-1]
    for parameterization in ("eps", "x0", "v"):
        m = predicts(None, parameterization=parameterization)
        signal, sigma = (u.double() for u in m.signal_and_sigma(t))
        x_t = signal * x_0 + sigma * eps
        output = {
            "eps": (x_t - signal * wrong) / sigma,
            "x0": wrong.double(),
            "v": (signal * x_t - wrong) / sigma,
        }[parameterization]
        target = {"eps": eps, "x0": x_0, "v": signal * eps - sigma * x_0}[parameterization]
        losses.append(
            objective.weight(kind, parameterization, m._snr[t])
            * ((output - target) ** 2).mean((1, 2, 3))
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-3)


def test_weights_are_those_of_their_papers():
    snr, one = torch.tensor([0.01, 1.0, 5.0, 80.0]), torch.ones(4)
    weight = objective.weight
    assert torch.equal(weight("plain", "eps", snr), one)
    assert torch.allclose(
        weight("min-snr", "eps", snr), torch.tensor([1.0, 1.0, 1.0, 5 / 80])
    )  # min(snr, 5) / snr
    assert torch.allclose(weight("min-snr", "v", snr), snr.clamp(max=5) / (snr + 1))
    # min-SNR+1 weights v as plain does, up to an SNR of 5
    expected = torch.tensor([1.0, 1.0, 1.0, 6 / 81])
    assert torch.allclose(weight("min-snr+1", "v", snr), expected)
    assert torch.allclose(weight("p2", "eps", snr), 1 / (1 + snr))
    sigma = snr**-0.5
    c_out = sigma * 0.5 / (sigma**2 + 0.25) ** 0.5  # table 1, EDM
    assert torch.allclose(weight("edm", "x0", snr) * c_out**2, one)


def test_a_weighted_loss_is_the_weighted_mean_of_the_plain_errors():
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    t, error = plain_errors(model(), x, 5)
    weighted = model(weighting="min-snr").get_loss(x, 5)
    assert torch.allclose(
        weighted, (error * objective.weight("min-snr", "eps", model()._snr[t])).mean()
    )
    assert not torch.allclose(weighted, error.mean())


def test_stratified_times_are_spread_over_the_batch_and_uniform():
    sigma = model()._ratio[1:]
    t = torch.stack(
        [objective.draw_times("stratified", 50, sigma, seeded(i)) for i in range(400)]
    )  # (400,50)
    for row in t:
        assert ((row.sort().values - 1) // 20).tolist() == list(range(50))  # one in each bin of 20
    assert t.min() == 1
    assert t.max() == 1000
    assert (
        (torch.bincount(t[:, 7], minlength=1001)[1:].view(10, 100).sum(1) - 40).abs() < 40
    ).all()  # each alone is uniform


def test_lognormal_times_have_the_mean_and_spread_of_edm():
    m = model(schedule="cosine")
    t = objective.draw_times("lognormal", 20_000, m._ratio[1:], seeded())
    log_sigma = m._ratio[t].log()
    assert abs(float(log_sigma.mean()) + 1.2) < 0.03
    assert abs(float(log_sigma.std()) - 1.2) < 0.03
    alone = objective.draw_times("lognormal", 50, m._ratio[1:], seeded(), mean=0.0, std=0.0)
    assert set(alone.tolist()) == {
        int((m._ratio[1:].log()).abs().argmin()) + 1
    }  # nearest to sigma = 1


@pytest.mark.parametrize("kind", ["stratified", "lognormal"])
def test_t_sampling_changes_the_times_of_training_only(kind):
    m, plain, x = model(t_sampling=kind), model(), torch.zeros(64, 1, 8, 8)
    batch = (x, torch.zeros(64, dtype=torch.long))
    assert torch.equal(m.validation_step(batch, 0)["t"], plain.validation_step(batch, 0)["t"])
    draws = [Draws(x, (0, Purpose.TRAIN, 0)) for _ in range(2)]
    own, uniform = draws[0].times(kind, m._ratio[1:]), draws[1].times("uniform", m._ratio[1:])
    assert not torch.equal(own, uniform)
    perturbed(m)
    assert not torch.equal(m.get_loss(x + 1, 0), perturbed(plain).get_loss(x + 1, 0))
