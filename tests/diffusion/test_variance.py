"""Learned variance: the bound in the loss, and the reverse step."""

import math

import pytest
import torch
from models import learned, plain_errors, seeded

import DiffusionModel as DiffusionModel_module
from diffusion import likelihood
from diffusion.denoiser import Prediction
from sampling.noise import Noise
from sampling.samplers import ddpm
from sampling.time_grid import time_grid


def test_the_decoder_is_a_distribution_over_256_values():
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, log_variance in (
        (0.0, -2.0),
        (0.3, -9.0),
        (-0.99, -8.0),
        (1.2, -6.0),
        (0.001, -14.0),
    ):
        log_p = likelihood.decoder_log_likelihood(
            values, torch.tensor(mean), torch.tensor(log_variance)
        )
        assert abs(float(log_p.exp().sum()) - 1) < 1e-5
        normal = torch.distributions.Normal(
            torch.tensor(mean, dtype=torch.float64), math.exp(log_variance / 2)
        )
        inside = values[1:-1]
        naive = normal.cdf(inside + 1 / 255) - normal.cdf(inside - 1 / 255)
        assert (log_p[1:-1].exp() - naive).abs().max() < 1e-6
    far = likelihood.decoder_log_likelihood(
        torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(-8.0)
    )
    assert -10_000 < float(far) < -1000  # a difference of two CDFs would be 0


def test_kl_equals_torchs():
    a, b, c, d = torch.randn(4, 50, generator=seeded(), dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a, (b / 2).exp()), normal(c, (d / 2).exp()))
    assert torch.allclose(likelihood.gaussian_kl(a, b, c, d), expected)


def test_the_bound_in_the_loss_is_that_of_bits_per_dim():
    m, x_0 = learned(T=20), torch.randint(0, 256, (20, 1, 8, 8), generator=seeded()) / 127.5 - 1
    t, eps = torch.arange(1, 21), torch.randn(20, 1, 8, 8, generator=seeded(1))
    x_t = m.q_sample(x_0, t, eps)
    found = likelihood.learned_variance_bound(m, m(x_t, t), x_0, x_t, t)
    assert torch.allclose(found, likelihood.one_term(m, x_0, t, eps))


def test_the_hybrid_loss_adds_the_bound_which_only_the_variance_learns_from(monkeypatch):
    m, x_0 = learned(), torch.rand(8, 1, 8, 8) * 2 - 1
    t, eps = (
        torch.randint(1, 1001, (8,), generator=seeded()),
        torch.randn(8, 1, 8, 8, generator=seeded()),
    )
    x_t = m.q_sample(x_0, t, eps)
    output = m(x_t, t).detach().requires_grad_()
    likelihood.learned_variance_bound(m, output, x_0, x_t, t).sum().backward()
    assert output.grad is not None
    assert output.grad[:, :1].abs().max() == 0
    assert output.grad[:, 1:].abs().max() > 0
    _, plain = plain_errors(m, x_0, 3)
    monkeypatch.setattr(
        DiffusionModel_module, "learned_variance_bound", lambda *_: torch.full((8,), 7.0)
    )
    assert torch.allclose(m.get_loss(x_0, 3), plain.mean() + 1e-3 * 1000 * 7.0)


def test_a_step_with_learned_variance_equals_diffusers():
    from diffusers import DDPMScheduler

    m, x = learned(), torch.randn(3, 1, 8, 8, generator=seeded())
    theirs = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=True,
        variance_type="learned_range",
    )
    for t in (1000, 437, 2, 1):
        z = torch.randn(x.shape, generator=seeded(t))
        output = m(x, torch.full((3,), t))
        expected = theirs.step(output, t - 1, x, generator=seeded(t)).prev_sample
        assert torch.allclose(m.denoise_sample(x, t, z=z), expected, atol=1e-4), t
        *_, (_, ours, _) = ddpm(m, x, [t, t - 1], lambda z=z: z, "learned")
        assert torch.allclose(ours, expected, atol=1e-4), t


@pytest.mark.parametrize(("fraction", "variance"), [(1.0, "large"), (0.0, "small")])
def test_learned_variance_ranges_from_small_to_large(fraction, variance):
    m = learned()
    predict = m.denoise
    m.denoise = lambda x, t: Prediction(predict(x, t).x0_hat, torch.full_like(x, fraction))
    for steps in (13, 999):
        runs = []
        for kind in ("learned", variance):
            noise = Noise(0, range(2), (1, 8, 8))
            runs.append(
                [x_t for _, x_t, _ in ddpm(m, noise(), time_grid(m, steps, 1000)[:6], noise, kind)]
            )
        for a, b in zip(*runs):
            assert torch.allclose(a, b, atol=1e-4)
