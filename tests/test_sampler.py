"""Samplers against closed forms and against Algorithm 2."""

import numpy as np
import pytest
import torch
from test_diffusion import SMALL, model

from DiffusionModel import DiffusionModel
from Sampler import Noise, ddpm


class Gaussian(DiffusionModel):
    """x_0 ~ N(mean, covariance) over two channels: denoise is the exact E[x_0 | x_t]."""

    mean = torch.tensor([0.7, -0.4])
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]])

    def denoise(self, x, t, y=None, clip=True):
        a = self.alpha_bar(t[0])
        gain = a.sqrt() * self.covariance @ torch.linalg.inv(a * self.covariance + (1 - a) * torch.eye(2))
        return (self.mean + (x[:, :, 0, 0] - a.sqrt() * self.mean) @ gain.T)[:, :, None, None]


@pytest.mark.parametrize("variance", ["large", "small"])
def test_ancestral_sampling_reaches_the_mean_and_covariance_of_a_gaussian(variance):
    g = Gaussian(**{**SMALL, "depth": 2})
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(40_000, 2, 1, 1, generator=generator)  # noqa: E731
    *_, (t, x, _) = ddpm(g, noise(), range(1000, -1, -1), noise, variance)
    x = x[:, :, 0, 0]
    assert t == 0
    np.testing.assert_allclose(x.mean(0), g.mean, atol=0.015)                 # 4 standard errors
    np.testing.assert_allclose(torch.cov(x.T), g.covariance, atol=0.02)


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("times", [range(20, -1, -1), [20, 13, 12, 5, 1, 0]])
def test_it_takes_the_steps_of_denoise_sample(variance, times):
    m = model(T=20, variance=variance)
    torch.nn.init.normal_(m.unet.conv_out.weight, std=0.1)
    noise, replay = (Noise(0, range(3), (1, 8, 8)) for _ in range(2))
    x = replay()
    for (t, x_t, x0_hat), s in zip(ddpm(m, noise(), times, noise, variance), [*list(times)[1:], None]):
        assert torch.allclose(x_t, x, atol=2e-5), t
        if s is not None:
            step = torch.full((3,), t)
            assert torch.allclose(x0_hat, m.denoise(x, step), atol=1e-4)
            x = m.denoise_sample(x, step, torch.full((3,), s), z=replay() if s else None)


def test_it_starts_at_T_and_skips_no_step():
    m, seen = model(T=20), []
    m.forward = lambda x, t, y=None: (seen.append(t.tolist()), x)[1]
    yielded = [t for t, _, _ in ddpm(m, torch.randn(2, 1, 8, 8), range(20, -1, -1), lambda: torch.randn(2, 1, 8, 8))]
    assert seen == [[t, t] for t in range(20, 0, -1)]
    assert yielded == list(range(20, -1, -1))
    assert [t for t, _, _ in ddpm(m, torch.randn(2, 1, 8, 8), [20, 7, 3], lambda: torch.randn(2, 1, 8, 8))] == [20, 7, 3]


def test_no_noise_is_added_in_the_last_step():
    m = model(T=20)
    *_, before, last = ddpm(m, torch.randn(2, 1, 8, 8), [20, 1, 0], lambda: torch.full((2, 1, 8, 8), 1e3))
    assert before[1].abs().max() > 10
    assert torch.allclose(last[1], before[2], atol=1e-4)                       # x_0 is the last prediction, clipped
    assert last[1].abs().max() <= 1


def test_noise_of_an_image_depends_on_seed_and_number_alone():
    whole, part = Noise(5, range(6), (1, 2, 2)), Noise(5, [4, 2], (1, 2, 2))
    for _ in range(3):
        a, b = whole(), part()
        assert torch.equal(a[[4, 2]], b)
        assert len(np.unique(a.numpy().round(5))) == a.numel()                 # no two images share noise
    assert not torch.equal(Noise(6, [0], (1, 2, 2))(), Noise(5, [0], (1, 2, 2))())
