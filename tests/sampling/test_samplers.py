"""Samplers against closed forms and against Algorithm 2."""

import functools

import numpy as np
import pytest
import torch
from models import EVERYTHING, SMALL, model, perturbed, seeded

from diffusion.denoiser import Prediction
from diffusion.schedules import SCHEDULES
from DiffusionModel import DiffusionModel
from sampling.guidance import Guided
from sampling.noise import Noise
from sampling.samplers import SAMPLERS, ddim, ddpm, dpm, heun, sample, unipc
from sampling.time_grid import time_grid


class Gaussian(DiffusionModel):
    """x_0 ~ N(mean, covariance) over two channels: denoise is the exact E[x_0 | x_t]."""

    mean = torch.tensor([0.7, -0.4])
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]])

    def denoise(self, x, t, y=None, clip=True):
        a = self.alpha_bar(t[0])
        gain = (
            a.sqrt()
            * self.covariance
            @ torch.linalg.inv(a * self.covariance + (1 - a) * torch.eye(2))
        )
        x0_hat = self.mean + (x[:, :, 0, 0] - a.sqrt() * self.mean) @ gain.T
        return Prediction(x0_hat[:, :, None, None])


@pytest.mark.parametrize("variance", ["large", "small"])
def test_ancestral_sampling_reaches_the_mean_and_covariance_of_a_gaussian(variance):
    g = Gaussian(**{**SMALL, "depth": 2})
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(40_000, 2, 1, 1, generator=generator)  # noqa: E731
    *_, (t, x, _) = ddpm(g, noise(), range(1000, -1, -1), noise, variance)
    x = x[:, :, 0, 0]
    assert t == 0
    np.testing.assert_allclose(x.mean(0), g.mean, atol=0.015)  # 4 standard errors
    np.testing.assert_allclose(torch.cov(x.T), g.covariance, atol=0.02)


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("times", [range(20, -1, -1), [20, 13, 12, 5, 1, 0]])
def test_ddpm_takes_the_steps_of_denoise_sample(variance, times):
    m = model(T=20, variance=variance)
    torch.nn.init.normal_(m.unet.conv_out.weight, std=0.1)
    noise, replay = (Noise(0, range(3), (1, 8, 8)) for _ in range(2))
    x = replay()
    for (t, x_t, x0_hat), s in zip(
        ddpm(m, noise(), times, noise, variance), [*list(times)[1:], None]
    ):
        assert torch.equal(x_t, x), t
        if s is not None:
            assert torch.equal(x0_hat, m.denoise(x, torch.full((3,), t)).x0_hat)
            x = m.denoise_sample(x, t, s, z=replay() if s else None)


def test_ddpm_skips_none_of_the_given_times():
    m, seen = model(T=20), []
    m.forward = lambda x, t, *_: (seen.append(t.tolist()), x)[1]
    yielded = [
        t
        for t, _, _ in ddpm(
            m, torch.randn(2, 1, 8, 8), range(20, -1, -1), lambda: torch.randn(2, 1, 8, 8)
        )
    ]
    assert seen == [[t, t] for t in range(20, 0, -1)]
    assert yielded == list(range(20, -1, -1))
    assert [
        t
        for t, _, _ in ddpm(m, torch.randn(2, 1, 8, 8), [20, 7, 3], lambda: torch.randn(2, 1, 8, 8))
    ] == [20, 7, 3]


def test_noise_of_an_image_depends_on_seed_and_number_alone():
    whole, part = Noise(5, range(6), (1, 2, 2)), Noise(5, [4, 2], (1, 2, 2))
    for _ in range(3):
        a, b = whole(), part()
        assert torch.equal(a[[4, 2]], b)
        assert len(np.unique(a.numpy().round(5))) == a.numel()  # no two images share noise
    assert not torch.equal(Noise(6, [0], (1, 2, 2))(), Noise(5, [0], (1, 2, 2))())


# ---- every sampler against a closed form, and against diffusers ---------------------------------


class Mixture:
    """Two round clouds in the plane: denoise is the exact E[x_0 | x_t], in float64. log_snr is
    linear in t, finite at both ends."""

    T = 4096
    means = torch.tensor([[0.8, 0.3], [-0.6, -0.5]], dtype=torch.float64)
    spread = torch.tensor([0.3, 0.5], dtype=torch.float64)
    share = torch.tensor([0.35, 0.65], dtype=torch.float64)

    def alpha_bar(self, t):
        return 1 / (1 + np.exp(-2 * (2.0 - 5.0 * t / self.T)))

    def denoise(self, x, t):
        a, z = self.alpha_bar(int(t[0])), x[:, None, :, 0, 0]  # z (N,1,2)
        signal, variance = a**0.5, a * self.spread**2 + 1 - a  # (2,) of x_t in each cloud
        away = z - signal * self.means  # (N,2,2)
        weight = (self.share.log() - variance.log() - (away**2).sum(2) / variance / 2).softmax(1)
        inside = self.means + (signal * self.spread**2 / variance)[:, None] * away
        return Prediction((weight[:, :, None] * inside).sum(1)[:, :, None, None])


def end(sampler, model, x, n):
    """x_0 after n equal steps in log_snr. The sampler goes on for three more, below 0: the last
    ones may be of lower order."""
    step = model.T // n
    return next(
        x_t for t, x_t, _ in sampler(model, x, range(model.T, -3 * step - 1, -step)) if t == 0
    )


@functools.cache
def mixture_problem():
    """The mixture, x_T, and the exact x_0 of it."""
    m, random = Mixture(), torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 1, 1, dtype=torch.float64, generator=random)
    return m, x, end(heun, m, x, m.T)


def ode_ddim(model, x, times):
    return ddim(model, x, times, lambda: pytest.fail("no noise is asked for"))


@pytest.mark.parametrize(("sampler", "order"), [(ode_ddim, 1), (heun, 2), (dpm, 2), (unipc, 4)])
def test_order_of_convergence_on_a_mixture(sampler, order):
    """Halving the step divides the error by 2^order; the corrector gives UniPC-3 one more (Zhao et
    al. 2023, section 3.1)."""
    m, x, exact = mixture_problem()
    errors = [float((end(sampler, m, x, n) - exact).abs().mean()) for n in (8, 16, 32, 64)]
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    print(sampler.__name__, "errors", errors, "orders", measured)
    assert abs(measured[-1] - order) < 0.15


def test_a_higher_order_is_more_accurate_at_the_same_number_of_evaluations():
    m, x, exact = mixture_problem()
    error = {
        s.__name__: float((end(s, m, x, n) - exact).abs().mean())
        for s, n in ((ode_ddim, 32), (heun, 16), (dpm, 32), (unipc, 32))
    }
    assert error["unipc"] < error["dpm"] < error["heun"] < error["ode_ddim"]


class Smooth(DiffusionModel):
    """A smooth denoiser for images of any size, for comparisons with other code. It is not the
    expectation of any distribution."""

    def denoise(self, x, t, y=None, clip=True):
        return Prediction(torch.tanh(0.8 * x - 0.3 * x.flip(3) + t[:, None, None, None] / 2000))


def theirs(scheduler, m, x, generator=None):
    """x_t before each of a diffusers scheduler's evaluations, and the last x."""
    seen = []
    for t in scheduler.timesteps:
        at = scheduler.scale_model_input(x, t) if "Heun" in type(scheduler).__name__ else x
        x0_hat = m.denoise(at, torch.full((len(x),), int(t) + 1)).x0_hat
        a = m.alpha_bar(int(t) + 1)
        out = (
            x0_hat
            if scheduler.config["prediction_type"] == "sample"
            else (at - a**0.5 * x0_hat) / (1 - a) ** 0.5
        )
        seen.append(at)
        x = scheduler.step(out, t, x, **({"generator": generator} if generator else {})).prev_sample
    return [*seen, x]


SCHEDULE = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
EVEN = list(range(1000, -1, -50))


ODD = [1000, 900, 897, 410, 33, 5, 1, 0]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("ddim", EVEN),
        ("ddim eta", EVEN),
        ("ddpm large", ODD),
        ("ddpm small", EVEN),
        ("dpm++", ODD),
        ("dpm++", EVEN),
        ("unipc", EVEN),
        ("heun", EVEN),
    ],
)
def test_trajectories_equal_diffusers(name, times):
    """Two samplers of diffusers are defined differently. Heun runs in x / signal and starts from
    sigma_T * noise, so it is given x_T / signal. UniPC yields x_t before the correction, which is
    part of the next call, so only the first and the last x are compared."""
    import diffusers

    m = Smooth(**SMALL)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    noise = lambda: torch.randn(x.shape, generator=a, dtype=x.dtype)  # noqa: E731
    custom, even = (
        {"timesteps": [t - 1 for t in times[:-1]]},
        {"num_inference_steps": len(times) - 1},
    )
    if name.startswith("ddim"):
        eta = 0.7 if "eta" in name else 0.0
        scheduler = diffusers.DDIMScheduler(
            **SCHEDULE, clip_sample=False, prediction_type="sample", timestep_spacing="trailing"
        )
        scheduler.set_timesteps(**even)
        step = scheduler.step
        scheduler.step = lambda *args, **options: step(*args, eta=eta, **options)
        ours = ddim(m, x, times, noise, eta)
    elif name.startswith("ddpm"):
        variance = name.split()[1]
        scheduler = diffusers.DDPMScheduler(
            **SCHEDULE,
            clip_sample=False,
            prediction_type="sample",
            variance_type=f"fixed_{variance}",
        )
        scheduler.set_timesteps(**custom)
        ours = ddpm(m, x, times, noise, variance)
    elif name == "dpm++":
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **SCHEDULE,
            prediction_type="sample",
            solver_order=2,
            final_sigmas_type="zero",
            algorithm_type="dpmsolver++",
        )
        scheduler.set_timesteps(**custom)
        ours = dpm(m, x, times)
    elif name == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(
            **SCHEDULE,
            prediction_type="sample",
            solver_order=3,
            solver_type="bh2",
            timestep_spacing="trailing",
            final_sigmas_type="zero",
        )
        scheduler.set_timesteps(**even)
        ours = unipc(m, x, times)
    else:
        scheduler = diffusers.HeunDiscreteScheduler(
            **SCHEDULE, prediction_type="epsilon", timestep_spacing="trailing"
        )
        scheduler.set_timesteps(**even)
        ours = heun(m, x, times)
    assert sorted({int(t) + 1 for t in scheduler.timesteps}, reverse=True) == times[:-1]
    start = x / m.alpha_bar(1000) ** 0.5 if name == "heun" else x
    expected = theirs(scheduler, m, start, b if "dd" in name else None)
    ours = [x_t for _, x_t, _ in ours]
    if name == "heun":
        expected = [*expected[:-1:2], expected[-1]]  # it evaluates twice at every t but the first
    if name == "unipc":
        ours, expected = [ours[0], ours[-1]], [expected[0], expected[-1]]
    assert len(ours) == len(expected)
    difference = max(float((o - e).abs().max()) for o, e in zip(ours, expected))
    print(name, difference)
    assert difference < 1e-4


def test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance():
    m, times = Smooth(**SMALL), [1000, 700, 333, 20, 1, 0]
    noise, again = (Noise(0, range(3), (1, 8, 8)) for _ in range(2))
    for (_, x, _), (_, y, _) in zip(
        ddim(m, noise(), times, noise, eta=1.0), ddpm(m, again(), times, again, "small")
    ):
        assert torch.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm"])
def test_few_steps_reach_the_covariance_of_a_gaussian_with_every_schedule(sampler, schedule):
    """Also if the schedule ends in nearly pure noise, which makes the first step difficult."""
    g = Gaussian(**{**SMALL, "depth": 2}, schedule=schedule)
    random = torch.Generator().manual_seed(0)
    *_, (_, x, _) = sample(
        sampler,
        g,
        torch.randn(20_000, 2, 1, 1, generator=random),
        time_grid(g, 40, 1000),
        lambda: pytest.fail("noise"),
    )
    x = x[:, :, 0, 0]
    np.testing.assert_allclose(x.mean(0), g.mean, atol=0.05)
    np.testing.assert_allclose(torch.cov(x.T), g.covariance, atol=0.06)


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_two_times_close_together_disturb_no_solver(sampler):
    g = Gaussian(**{**SMALL, "depth": 2}, schedule="cosine")
    x = torch.randn(200, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    ends = [
        list(
            sample(sampler, g, x, time_grid(g, 20, 1000, keep=keep), lambda: pytest.fail("noise"))
        )[-1][1]
        for keep in ([], [499], [501, 949, 101])
    ]
    exact = list(sample(sampler, g, x, time_grid(g, 500, 1000), lambda: pytest.fail("noise")))[-1][
        1
    ]
    errors = [float((end - exact).abs().mean()) for end in ends]
    print(errors)
    assert max(errors[1:]) < 1.5 * errors[0] + 1e-3


@pytest.mark.parametrize(
    "schedule", [*({"schedule": name} for name in SCHEDULES), {"zero_terminal_snr": True}]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_finds_a_known_image_with_every_schedule(sampler, schedule):
    """If the network always predicts the same image, every sampler ends at this image."""
    m, image = (
        model(parameterization="x0", **schedule),
        torch.rand(1, 8, 8, generator=seeded()) * 2 - 1,
    )
    m.forward = lambda x, t, *_: image.expand_as(x)
    noise = Noise(0, range(2), (1, 8, 8))
    *_, (t, x, _) = sample(sampler, m, noise(), time_grid(m, 7, 1000, "log-snr"), noise, "small")
    assert t == 0
    assert (x - image).abs().max() < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_a_model_with_everything(sampler):
    m = perturbed(model(**EVERYTHING))
    noise = Noise(0, range(2), (1, 8, 8))
    *_, (_, x, _) = sample(
        sampler,
        Guided(m, torch.tensor([0, 2]), 2.0),
        noise(),
        time_grid(m, 9, 1000),
        noise,
        m.variance,
    )
    assert x.isfinite().all()
    assert x.abs().max() <= 1 + 1e-5
