"""Inversion, inpainting and interpolation, against closed forms; time grids."""

import numpy as np
import pytest
import torch
from models import conditional, model, perturbed

from diffusion.denoiser import Prediction
from sampling.editing import invert, repaint, slerp
from sampling.guidance import Guided
from sampling.samplers import ddim, levels
from sampling.time_grid import GRIDS, time_grid


def roundtrip(m, image, times, iterations):
    *_, (_, latent, _) = invert(m, image, times[::-1], iterations)
    *_, (_, back, _) = ddim(m, latent, times, lambda: pytest.fail("no noise is asked for"))
    return latent, float((back - image).abs().max())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"parameterization": "v", "schedule": "cosine"},
        pytest.param({"parameterization": "v", "zero_terminal_snr": True}, marks=pytest.mark.slow),
    ],
)
def test_an_image_comes_back_from_its_latent(settings):
    m = Guided(perturbed(model(**settings)), clip=False)
    image = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    times = time_grid(m, 50, 1000, "log-snr")
    latent, error = roundtrip(m, image, times, iterations=10)
    _, once = roundtrip(m, image, times, iterations=1)
    print(error, once)
    assert error < 1e-2
    assert once > 3 * error  # one iteration is less accurate
    assert (latent - image).abs().max() > 0.3


def test_the_latent_of_a_gaussian_is_its_whitening():
    """x_0 ~ N(0, s^2): the probability flow maps x_0 to x_T = x_0 / s * sqrt(alpha_bar s^2 + 1 -
    alpha_bar)."""
    s, m = 0.5, model()

    class Known:
        alpha_bar = m.alpha_bar

        def denoise(self, x, t):
            a = m.alpha_bar(int(t[0]))
            return Prediction(x * a**0.5 * s**2 / (a * s**2 + 1 - a))

    x = torch.linspace(-1, 1, 9).view(9, 1, 1, 1)
    *_, (t, latent, _) = invert(Known(), x, range(0, 1001))
    assert t == 1000
    assert torch.allclose(latent, x / s, atol=0.02)


class Pair:
    """Two pixels with the distribution N(mean, covariance), for which denoise is exact and the
    distribution of the second pixel given the first is known."""

    mean, covariance = torch.tensor([0.2, -0.1]), torch.tensor([[1.0, 0.8], [0.8, 1.0]])

    def __init__(self):
        self.alpha_bar = model().alpha_bar

    def denoise(self, x, t):
        a = self.alpha_bar(int(t[0]))
        gain = (
            a**0.5
            * self.covariance
            @ torch.linalg.inv(a * self.covariance + (1 - a) * torch.eye(2))
        )
        return Prediction((self.mean + (x[:, 0, 0] - a**0.5 * self.mean) @ gain.T)[:, None, None])


def test_inpainting_keeps_what_is_known_and_fits_the_rest_to_it():
    m, mask = Pair(), torch.tensor([[False, True]])
    known = torch.tensor([[[1.2, 9.9]]])
    expected = -0.1 + 0.8 * (1.2 - 0.2)  # E[x_2 | x_1 = 1.2], variance 1 - 0.64
    found = {}
    for rounds in (1, 10):
        random = torch.Generator().manual_seed(0)
        noise = lambda random=random: torch.randn(4000, 1, 1, 2, generator=random)  # noqa: E731
        steps = list(
            repaint(m, noise(), time_grid(m, 50, 1000), noise, known, mask, jump=5, rounds=rounds)
        )
        assert [t for t, _, _ in steps] == time_grid(m, 50, 1000)  # each t once, in order
        x = steps[-1][1]
        assert (x[..., 0] == 1.2).all()
        found[rounds] = (float(x[..., 1].mean()), float(x[..., 1].var()))
    print(found, expected)
    assert abs(found[10][0] - expected) < 0.08
    assert (
        abs(found[10][0] - expected) < abs(found[1][0] - expected) / 2
    )  # more rounds make the two regions more consistent
    assert 0.25 < found[10][1] < 0.5


def test_slerp_goes_from_one_to_the_other_and_keeps_the_norm():
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert float(slerp(a, b, 0.5).norm()) == pytest.approx(
        float((a.norm() + b.norm()) / 2), rel=0.02
    )
    unit = slerp(a / a.norm(), b / b.norm(), 0.25)
    assert float((unit * a / a.norm()).sum().clamp(-1, 1).acos()) == pytest.approx(
        0.25 * float((a / a.norm() * b / b.norm()).sum().acos()), rel=1e-3
    )


def test_guided_inversion_comes_back_too():
    m = Guided(conditional(), torch.tensor([0, 2]), scale=2.0, clip=False)
    image = torch.rand(2, 1, 8, 8) * 2 - 1
    assert roundtrip(m, image, time_grid(m, 50, 1000, "log-snr"), iterations=10)[1] < 2e-3


# ---- times --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "cosine"}, {"zero_terminal_snr": True, "parameterization": "v"}]
)
def test_a_grid_goes_from_start_to_0_in_as_many_steps_as_asked_for(grid, settings):
    m = model(**settings)
    for start in (1, 2, 700, 1000):
        for steps in (1, 2, 5, 50, start):
            if steps <= start:
                times = time_grid(m, steps, start, grid)
                assert len(times) == steps + 1
                assert (times[0], times[-1]) == (start, 0)
                assert (np.diff(times) < 0).all()
        assert time_grid(m, start, start, grid) == list(range(start, -1, -1))
    with pytest.raises(ValueError, match="choose from 1 to 20 steps"):
        time_grid(m, 21, 20, grid)


def test_times_of_each_grid():
    m = model()
    assert time_grid(m, 4, 1000) == [1000, 750, 500, 250, 0]
    assert time_grid(m, 4, 1000, "quadratic") == [1000, 562, 250, 62, 0]
    ratio = lambda t: (1 / m.alpha_bar(t) - 1) ** 0.5  # noqa: E731
    for grid, value in (
        ("log-snr", lambda t: levels(m, t)[2]),
        ("edm", lambda t: ratio(t) ** (1 / 7)),
    ):
        times = time_grid(m, 9, 1000, grid)
        assert times[-2] == 1
        gaps = np.diff([value(t) for t in times[:-1]])
        assert np.abs(gaps / gaps.mean() - 1).max() < 0.25, (
            grid
        )  # equal, but for rounding to whole t


def test_steps_to_keep_are_in_the_grid():
    assert time_grid(model(), 4, 1000, keep=[0, 50, 500, 1000]) == [1000, 750, 500, 250, 50, 0]
