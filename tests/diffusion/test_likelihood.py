"""Bits/dim: against distributions whose entropy is known, and against slow and obvious loops."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import norm
from torch import Tensor

from diffusion import likelihood, schedules
from diffusion.denoiser import Prediction
from diffusion.probability_flow import at_ratio, denoise_at, flow
from DiffusionModel import DiffusionModel, ForwardProcess


class Known(ForwardProcess):
    """A model of a known distribution: `mean(x, ratio)` is E[x_0 | x_0 + ratio eps = x] in closed
    form."""

    def __init__(self, mean, T=1000, schedule="linear", variance="small"):
        super().__init__()
        abar = 1 / (1 + np.geomspace(1e-3, 300, T) ** 2)  # "even": log(sigma / signal) rises evenly
        self.tabulate(
            1 - abar / np.append(1, abar[:-1])
            if schedule == "even"
            else schedules.betas(schedule, T, 1e-4 * 1000 / T, min(0.5, 0.02 * 1000 / T))
        )
        self.mean, self.T, self.variance = mean, T, variance

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x

    def predictions(self, output: Tensor, x: Tensor, signal: float, sigma: float) -> Prediction:
        return Prediction(self.mean(x / signal, sigma / signal), torch.zeros_like(x))

    def denoise(self, x: Tensor, t: Tensor) -> Prediction:
        signal, sigma, _ = at_ratio(self, (1 / self.alpha_bar(int(t[0])) - 1) ** 0.5)
        return self.predictions(x, x, signal, sigma)


class Gaussian(Known):
    """Values from N(0, S^2): the reverse step is also Gaussian, and its variance is known
    exactly."""

    def __init__(self, **settings):
        super().__init__(gaussian, variance="learned", **settings)

    def denoise(self, x: Tensor, t: Tensor) -> Prediction:
        n, abar, beta = int(t[0]), self.schedule["alpha_bar"], self.schedule["beta"]
        rest = 1 / (1 / S**2 + abar[n] / (1 - abar[n]))  # the variance of x_0 given x_t
        small, m = beta[n] * (1 - abar[n - 1]) / (1 - abar[n]), max(2, n)
        exact = small + (abar[n - 1] ** 0.5 * beta[n] / (1 - abar[n])) ** 2 * rest
        low = beta[m] * (1 - abar[m - 1]) / (1 - abar[m])  # the variance at fraction = 0
        fraction = math.log(exact / low) / math.log(beta[n] / low)
        return Prediction(super().denoise(x, t).x0_hat, torch.full_like(x, fraction))


def noise(shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=random)


S = 0.2  # standard deviation of the Gaussian


def gaussian(z, ratio):
    return z * S**2 / (S**2 + ratio**2)


def two_levels(z, ratio):
    """Every value is 68 or 187 of 255, with probability 1/2."""
    level = 59.5 / 127.5
    return level * torch.tanh(level * z / ratio**2)


def of_gaussian(count, size=8):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, size, size, generator=random, dtype=torch.float64) * S
    return ((x * 127.5 + 127.5).round().clamp(0, 255) / 127.5 - 1).float()


ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * S**2) + math.log2(
    127.5
)  # of the Gaussian in levels of 1/127.5, in bits


@pytest.mark.parametrize(("T", "schedule"), [(5, "linear"), (100, "linear"), (100, "cosine")])
def test_the_bound_of_a_gaussian_is_its_entropy(T, schedule):
    """With the exact reverse step, for any number of steps, the bound is the entropy plus the KL
    divergence of x_T from the prior."""
    x_0 = of_gaussian(500)
    model = Gaussian(T=T, schedule=schedule)
    terms = likelihood.bound(model, x_0, noise(x_0.shape))
    assert terms.shape == (T + 1, 500)
    last = (
        model.alpha_bar(T) * S**2 + 1 - model.alpha_bar(T)
    )  # the variance of x_T; that of the prior is 1
    more = 0.5 * (last - 1 - math.log(last)) / math.log(2)
    log_p = torch.distributions.Normal(0.0, S).log_prob(x_0).mean(dim=(1, 2, 3)) / math.log(2)
    assert float(terms.sum(0).mean()) == pytest.approx(
        math.log2(127.5) - float(log_p.mean()) + more, abs=0.01
    )
    assert float(terms.sum(0).mean()) == pytest.approx(ENTROPY + more, abs=0.02)


@pytest.mark.slow
def test_fixed_variances_approach_the_entropy_from_above():
    x_0, found = of_gaussian(100), {}
    for variance, T in (("large", 1000), ("large", 4000), ("small", 1000), ("small", 4000)):
        found[variance, T] = (
            float(
                likelihood.bound(Known(gaussian, T, variance=variance), x_0, noise(x_0.shape))
                .sum(0)
                .mean()
            )
            - ENTROPY
        )
    assert 0 < found["large", 4000] < found["large", 1000] < 0.12
    assert found["large", 1000] < found["small", 4000] < found["small", 1000] < 1


def test_the_bound_of_two_levels_is_one_bit():
    levels = (
        torch.randint(0, 2, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 119 + 68
    )
    x_0 = levels / 127.5 - 1
    terms = likelihood.bound(Known(two_levels, 1000, "even"), x_0, noise(x_0.shape))
    assert float(terms.sum(0).mean()) == pytest.approx(1, abs=0.03)
    assert float(terms[0].mean()) < 1e-3  # nothing is left to decode
    assert float(terms[-1].mean()) < 1e-4  # and nothing of the image is in x_T


def test_the_flow_of_a_gaussian_has_its_density():
    """Each image has the bits/dim of its density under N(0, S^2), known in closed form."""
    x_0 = of_gaussian(16)
    uniform = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(2))
    bits = flow(Known(gaussian), x_0, uniform, noise(x_0.shape, 3))
    z = (x_0 + (uniform - 0.5) / 127.5).double()
    variance = S**2 + 1e-6
    expected = (0.5 * z**2 / variance + 0.5 * math.log(2 * math.pi * variance)).mean(
        dim=(1, 2, 3)
    ) / math.log(2) + math.log2(127.5)
    assert (bits - expected).abs().max() < 2e-3
    many = of_gaussian(400)
    uniform = torch.rand(many.shape, generator=torch.Generator().manual_seed(4))
    assert float(flow(Known(gaussian), many, uniform, noise(many.shape)).mean()) == pytest.approx(
        ENTROPY, abs=0.01
    )


def test_hutchinsons_estimate_averages_out():
    """If neighbouring values are correlated, the divergence estimated with one probe is wrong, and
    that estimated with many is right."""
    mixing = (
        torch.eye(16, dtype=torch.float32)
        + 0.3 * torch.roll(torch.eye(16), 1, 0)
        + 0.3 * torch.roll(torch.eye(16), -1, 0)
    )
    values, vectors = torch.linalg.eigh(mixing @ mixing.T * S**2)

    def mean(z, ratio):
        return ((z.flatten(1) @ vectors) * (values / (values + ratio**2)) @ vectors.T).view(z.shape)

    random = torch.Generator().manual_seed(0)
    x_0 = (torch.randn(8, 16, generator=random) @ mixing * S).view(8, 1, 4, 4)
    uniform = torch.full_like(x_0, 0.5)
    z = x_0.flatten(1).double()
    covariance = (mixing @ mixing.T * S**2).double() + 1e-6 * torch.eye(16, dtype=torch.float64)
    log_p = torch.distributions.MultivariateNormal(
        torch.zeros(16, dtype=torch.float64), covariance
    ).log_prob(z)
    expected = -log_p / 16 / math.log(2) + math.log2(127.5)
    errors = [
        float((flow(Known(mean), x_0, uniform, noise(x_0.shape), probes=n) - expected).abs().mean())
        for n in (1, 64)
    ]
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05


def network(**settings) -> DiffusionModel:
    torch.manual_seed(0)
    model = DiffusionModel(
        T=12, width=8, mults=(1,), attention=(), blocks=1, depth=1, size=4, dropout=0.0, **settings
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variance": "small"},
        {"variance": "learned"},
        {"parameterization": "v", "schedule": "cosine"},
    ],
)
def test_terms_equal_a_slow_loop(settings):
    model, B = network(**settings), 3
    x_0 = (
        torch.randint(0, 256, (B, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    )
    x_0[0, 0, 0], x_0[1, 0, 0] = -1, 1  # the ends of the range
    terms = likelihood.bound(model, x_0, noise(x_0.shape))
    eps, beta = noise(x_0.shape), np.array(model.schedule["beta"])
    abar = np.cumprod(1 - beta)
    for t in range(1, 13):
        x_t = abar[t] ** 0.5 * x_0 + (1 - abar[t]) ** 0.5 * eps()
        prediction = model.denoise(x_t, torch.full((B,), t))
        x0_hat = prediction.x0_hat.detach().double().numpy()
        share = np.zeros_like(x0_hat)
        if prediction.fraction is not None:
            share = prediction.fraction.detach().double().numpy()
        small = beta[max(2, t)] * (1 - abar[max(2, t) - 1]) / (1 - abar[max(2, t)])
        for b in range(B):
            total = 0.0
            for i, j in np.ndindex(4, 4):
                x, start, guess = float(x_t[b, 0, i, j]), float(x_0[b, 0, i, j]), x0_hat[b, 0, i, j]
                c_0, c_t = (
                    abar[t - 1] ** 0.5 * beta[t] / (1 - abar[t]),
                    (1 - beta[t]) ** 0.5 * (1 - abar[t - 1]) / (1 - abar[t]),
                )
                variance = {
                    "large": small if t == 1 else beta[t],
                    "small": small,
                    "learned": math.exp(
                        share[b, 0, i, j] * math.log(beta[t])
                        + (1 - share[b, 0, i, j]) * math.log(small)
                    ),
                }
                v, mean = variance[model.variance], c_0 * guess + c_t * x
                if t == 1:
                    above = 1.0 if start > 0.999 else norm.cdf(start + 1 / 255, mean, v**0.5)
                    below = 0.0 if start < -0.999 else norm.cdf(start - 1 / 255, mean, v**0.5)
                    if (
                        above - below < 1e-12
                    ):  # far in the tail, where this difference has no digits
                        total = math.nan
                    else:
                        total -= math.log(above - below)
                else:
                    total += 0.5 * (
                        math.log(v / small)
                        + small / v
                        + (c_0 * start + c_t * x - mean) ** 2 / v
                        - 1
                    )
            if not math.isnan(total):
                assert float(terms[t - 1, b]) == pytest.approx(
                    total / 16 / math.log(2), rel=2e-4, abs=1e-6
                )
    prior = (
        0.5
        * (-math.log(1 - abar[12]) + (1 - abar[12]) + abar[12] * (x_0.double() ** 2) - 1).mean(
            dim=(1, 2, 3)
        )
        / math.log(2)
    )
    assert torch.allclose(terms[-1].double(), prior, rtol=1e-5)


def test_the_estimate_has_the_bounds_mean():
    """Their means over 3000 draws of the noise agree within four standard errors."""
    model = network(variance="small")
    x_0 = (
        torch.randint(0, 256, (1, 1, 4, 4), generator=torch.Generator().manual_seed(5)) / 127.5 - 1
    ).expand(3000, 1, 4, 4)
    exact = likelihood.bound(model, x_0, noise(x_0.shape)).sum(0)
    for K in (1, 4):
        uniform = torch.rand(3000, K, generator=torch.Generator().manual_seed(6))
        found = likelihood.estimate(model, x_0, noise(x_0.shape, 7), uniform)
        error = math.hypot(float(found.std()), float(exact.std())) / 3000**0.5
        assert abs(float(found.mean() - exact.mean())) < 4 * error
        assert error < 0.1 * float(exact.mean())


def test_denoise_at_a_ratio_equals_denoise_at_whole_times():
    model = network(parameterization="v")
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in (1, 5, 12):
        signal, sigma, real = at_ratio(model, (1 / model.alpha_bar(t) - 1) ** 0.5)
        assert real == pytest.approx(t, abs=1e-6)
        assert signal**2 == pytest.approx(model.alpha_bar(t))
        assert sigma**2 == pytest.approx(1 - model.alpha_bar(t))
        assert torch.allclose(
            denoise_at(model, sigma / signal, x),
            model.denoise(x, torch.full((2,), t), clip=False).x0_hat,
            atol=1e-5,
        )
    assert at_ratio(model, 1e-6)[2] == 1
    near = denoise_at(model, 1e-6, x)  # almost no noise: the prediction is the image itself
    assert torch.allclose(near, x, atol=1e-4)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_flow_that_cannot_be_followed_is_refused(beyond):
    """The network's output is NaN where sigma / signal > `beyond`; that is an error."""
    model = Known(
        lambda z, ratio: z * S**2 / (S**2 + ratio**2) * (math.nan if ratio > beyond else 1)
    )
    x_0 = of_gaussian(2)
    with pytest.raises(ValueError, match="cannot be integrated: its slope is not finite"):
        flow(model, x_0, torch.full_like(x_0, 0.5), noise(x_0.shape))


def test_two_spellings_that_put_doubles_on_the_device_do_not_occur():
    """Some devices, such as Apple's, have no double precision, so tensors must be moved to the CPU
    before they are converted to double, and converted back before they are moved to the device.
    Other spellings of this mistake are not searched for."""
    for file in (
        "diffusion/likelihood.py",
        "evaluation/bits_per_dim.py",
        "evaluation/metrics.py",
        "evaluation/neighbours.py",
        "evaluation/distances.py",
    ):
        text = (ROOT / file).read_text()
        assert ".double().cpu()" not in text
        assert not re.search(r"\.to\(x_0\)", text), (
            "one call would convert on the device: see `like`"
        )


def test_noise_costs_bits_and_lower_contrast_saves_some():
    """Unlike a distance, bits/dim do not penalize pale images: they rise with noise, and fall when
    the contrast is reduced."""
    x_0, model = of_gaussian(60), Gaussian(T=50)
    images = (x_0 * 127.5 + 127.5).round()

    def measured(images):
        x = images.round().clamp(0, 255) / 127.5 - 1
        same = torch.Generator().manual_seed(3)
        uniform = torch.rand(x.shape, generator=same)
        return (
            float(likelihood.bound(model, x, noise(x.shape)).sum(0).mean()),
            float(
                likelihood.estimate(
                    model, x, noise(x.shape), torch.rand(len(x), 8, generator=same)
                ).mean()
            ),
            float(flow(model, x, uniform, noise(x.shape)).mean()),
        )

    noisy = [measured(images + level * noise(x_0.shape, 9)()) for level in (0, 10, 20, 40)]
    pale = [measured(127.5 + (images - 127.5) * left) for left in (1, 0.8, 0.6, 0.4)]
    for one in zip(*noisy):
        assert list(one) == sorted(one)
        assert one[-1] > one[0] + 0.5
    for one in zip(*pale):
        assert list(one) == sorted(one, reverse=True)
