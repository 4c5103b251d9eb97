"""From x_T to x_0: every sampler as a generator over times.

    times = time_grid(model, 20)                                         # T, .., 0: 20 steps
    x = noise()                                                          # x_T (N,C,H,W)
    for t, x_t, x0_hat in dpm(model, x, times): ...

A sampler knows the model's `denoise(x, t)` and its schedule `alpha_bar(t)`, and nothing
else: see `Denoiser`. It yields (t, x_t, x0_hat) for every t in `times`, which go down, to 0 for an image; at the
last one x_t is its own prediction.

`signal` is sqrt(alpha_bar), `sigma` sqrt(1 - alpha_bar), `log_snr` the logarithm of signal / sigma
(half of log(SNR): lambda in Lu et al. 2022). Letters in the shape columns: N images, C channels, H
and W height and width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, Prediction
from DiffusionModel import DiffusionModel
from runtime.randomness import Purpose, generator

SAMPLERS = ("ddpm", "ddim", "heun", "dpm++", "unipc")
GRIDS = ("uniform", "quadratic", "log-snr", "edm")
RHO = 7  # table 1 of Karras et al. 2022
ORDER = 3  # of UniPC
Step = tuple[int, Tensor, Tensor]


class Noise:
    """Standard normal noise in which image i has a generator of its own, seeded by (seed, i): it
    is the same in any batch.

    `Noise(seed, range(8, 16), (C, H, W))()` -> the next (8,C,H,W). It is drawn on the CPU, so that
    a seed means the same pictures on every device. `purpose` is what it is for, where that is not
    to begin an image.
    """

    def __init__(
        self,
        seed: int,
        indices: Iterable[int],
        shape: tuple[int, ...],
        device: str | torch.device = "cpu",
        purpose: int = Purpose.SAMPLE,
    ):
        self.generators = [generator("cpu", seed, purpose, i) for i in indices]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(
            self.device
        )


# ---- times -----------------------------------------------------------------------------------------------------------


def time_grid(
    model: Denoiser, steps: int, start: int, grid: str = "uniform", keep: Iterable[int] = ()
) -> list[int]:
    """start, .., 0: `steps` steps, each at least 1 long, and in between every t of `keep`, which
    adds steps.

    grid: "uniform" in t; "quadratic", t ~ (1 - i/n)^2 (Song et al. 2021, DDIM, appendix D.2);
    "log-snr", uniform in it from `start` to t = 1 and then 0 (Lu et al. 2022, DPM-Solver, section
    3.3); "edm", uniform in (sigma / signal)^(1/7), likewise (Karras et al. 2022, Eq. 5). The last
    three take smaller steps where little noise is left. Raises ValueError where there are more
    steps than times.
    """
    if not 1 <= steps <= start:
        raise ValueError(f"{steps} steps from t = {start}: choose from 1 to {start} steps")
    u = np.arange(steps + 1) / steps  # (steps+1,) 0 .. 1
    if grid == "uniform":
        wanted = start * (1 - u)
    elif grid == "quadratic":
        wanted = start * (1 - u) ** 2
    elif grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}: one of {', '.join(GRIDS)}")
    else:
        ratio = np.array(
            [
                sigma / signal if signal else np.inf
                for signal, sigma, _ in (levels(model, t) for t in range(1, start + 1))
            ]
        )
        value = np.log(ratio) if grid == "log-snr" else ratio ** (1 / RHO)  # (start,), rises with t
        value[-1] = (
            min(value[-1], 1e9) if start == 1 or math.isfinite(value[-1]) else value[-2]
        )  # from the last finite one
        between = value[-1] + (value[0] - value[-1]) * np.arange(steps) / max(
            1, steps - 1
        )  # (steps,)
        wanted = np.append(np.abs(value[None] - between[:, None]).argmin(1) + 1, 0)
    times, last = [], start + 1
    for i, t in enumerate(wanted):
        last = max(
            min(round(t), last - 1), steps - i
        )  # below the one before, and above those to come
        times.append(last)
    times[0] = start
    return sorted({*times, *(t for t in keep if 0 <= t <= start)}, reverse=True)


def levels(model: Denoiser, t: int) -> tuple[float, float, float]:
    """signal, sigma and log_snr at t, in double precision; log_snr is infinite at t = 0, and at T
    where alpha_bar is 0."""
    alpha_bar = model.alpha_bar(t)
    log_snr = (
        math.inf
        if alpha_bar == 1
        else -math.inf
        if alpha_bar == 0
        else 0.5 * math.log(alpha_bar / (1 - alpha_bar))
    )
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5, log_snr


def predict(model: Denoiser, x: Tensor, t: int) -> Prediction:
    """The model's prediction from x_t (N,C,H,W), all at the same t."""
    return model.denoise(x, torch.full((len(x),), t, device=x.device))


def sample(
    sampler: str,
    model: Denoiser,
    x: Tensor,
    times: Iterable[int],
    noise: Callable[[], Tensor],
    variance: str = "large",
    eta: float = 0.0,
) -> Iterator[Step]:
    """The generator of this name, one of `SAMPLERS`. variance is ddpm's, eta ddim's."""
    if sampler == "ddpm":
        return ddpm(model, x, times, noise, variance)
    if sampler == "ddim":
        return ddim(model, x, times, noise, eta)
    return {"heun": heun, "dpm++": dpm, "unipc": unipc}[sampler](model, x, times)


# ---- with noise ----------------------------------------------------------------------------------


@torch.no_grad()
def ddpm(
    model: Denoiser,
    x: Tensor,
    times: Iterable[int],
    noise: Callable[[], Tensor],
    variance: str = "large",
) -> Iterator[Step]:
    """Ancestral sampling, Algorithm 2 of Ho et al. 2020; with times T, T-1, .., 0 it is the paper's.
    x (N,C,H,W) is x_t at the first of `times`. Each step is `DiffusionModel.denoise_sample`."""
    for t, s in pairwise(times := list(times)):
        prediction = predict(model, x, t)
        yield t, x, prediction.x0_hat
        x = ancestral_step(model, x, t, s, noise, variance, prediction)
    yield times[-1], x, x


def ancestral_step(
    model: Denoiser,
    x: Tensor,
    t: int,
    s: int,
    noise: Callable[[], Tensor],
    variance: str,
    prediction: Prediction,
) -> Tensor:
    """x_t -> x_s, (N,C,H,W): `DiffusionModel.denoise_sample`, which needs no noise where s = 0."""
    z = noise() if s > 0 else None
    return DiffusionModel.denoise_sample(model, x, t, s, z, variance, prediction)


@torch.no_grad()
def ddim(
    model: Denoiser, x: Tensor, times: Iterable[int], noise: Callable[[], Tensor], eta: float = 0.0
) -> Iterator[Step]:
    """Eq. 12 and 16 of Song et al. 2021, "Denoising diffusion implicit models": deterministic with
    eta 0, `ddpm` with the small variance with eta 1. First order."""
    for t, s in pairwise(times := list(times)):
        (signal_t, sigma_t, _), (signal_s, sigma_s, _) = levels(model, t), levels(model, s)
        x0_hat = predict(model, x, t).x0_hat
        yield t, x, x0_hat
        eps = (x - signal_t * x0_hat) / sigma_t
        added = eta * sigma_s / sigma_t * max(0.0, 1 - (signal_t / signal_s) ** 2) ** 0.5
        x = signal_s * x0_hat + max(0.0, sigma_s**2 - added**2) ** 0.5 * eps
        if added:
            x = x + added * noise()
    yield times[-1], x, x


# ---- without noise -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def heun(model: Denoiser, x: Tensor, times: Iterable[int]) -> Iterator[Step]:
    """Heun's method for dx/d(sigma) = (x - x0_hat) / sigma in x / signal and sigma / signal:
    Algorithm 1 of Karras et al. 2022. Second order, with two evaluations a step. A step over which
    sigma / signal falls to less than a quarter is Euler's, with one: to t = 0, and where a
    schedule ends in pure noise, from which the slope of a straight line would lead far away."""
    for t, s in pairwise(times := list(times)):
        (signal_t, sigma_t, _), (signal_s, sigma_s, _) = levels(model, t), levels(model, s)
        x0_hat = predict(model, x, t).x0_hat
        yield t, x, x0_hat
        slope = (x - signal_t * x0_hat) / sigma_t  # d(x / signal) / d(sigma / signal): eps
        euler = signal_s * x0_hat + sigma_s * slope
        if sigma_s and sigma_t * signal_s < 4 * sigma_s * signal_t:
            slope_s = (euler - signal_s * predict(model, euler, s).x0_hat) / sigma_s
            x = signal_s * (
                x / signal_t + (sigma_s / signal_s - sigma_t / signal_t) * (slope + slope_s) / 2
            )
        else:
            x = euler
    yield times[-1], x, x


@torch.no_grad()
def dpm(model: Denoiser, x: Tensor, times: Iterable[int]) -> Iterator[Step]:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022, "DPM-Solver++". Second order in log_snr,
    with one evaluation a step: the slope of x0_hat comes from the step before. The first step is
    first order, and so is one to t = 0."""
    before: tuple[float, Tensor] | None = None  # log_snr and x0_hat of the step before
    for t, s in pairwise(times := list(times)):
        log_snr = levels(model, t)[2]
        x0_hat = predict(model, x, t).x0_hat
        yield t, x, x0_hat
        x = exponential_step(model, x, t, s, x0_hat, [before] if before else [])
        before = (log_snr, x0_hat) if math.isfinite(log_snr) else None
    yield times[-1], x, x


@torch.no_grad()
def unipc(model: Denoiser, x: Tensor, times: Iterable[int]) -> Iterator[Step]:
    """UniPC of order 3 with B(h) = e^h - 1, predicting x_0: Algorithm 5 and 6 of Zhao et al. 2023.
    One evaluation a step: that at the predicted x_s also corrects x_s, before the next step. The
    first steps are of lower order, and the last; one after a step that was less than a quarter as
    long leaves out what is so near. The x0_hat that is yielded was made from x_t before its
    correction."""
    history: list[tuple[float, Tensor]] = []  # log_snr and x0_hat, the newest first
    last: tuple[Tensor, int, list[tuple[float, Tensor]]] | None = (
        None  # x, t and history used in the last step
    )
    times = list(times)
    for i, (t, s) in enumerate(pairwise(times)):
        log_snr = levels(model, t)[2]
        x0_hat = predict(model, x, t).x0_hat
        if last:
            x_before, t_before, (newest, *older) = last
            x = exponential_step(
                model, x_before, t_before, t, newest[1], [*older, (log_snr, x0_hat)]
            )
        yield t, x, x0_hat
        near = (levels(model, s)[2] - log_snr) / 4  # a slope over less would show the corrections
        history = [
            (log_snr, x0_hat),
            *(node for node in history if log_snr - node[0] > near or math.isinf(near)),
        ]
        history = history[: min(ORDER, len(times) - 1 - i)] if math.isfinite(log_snr) else []
        last = (x, t, history) if history else None
        x = exponential_step(model, x, t, s, x0_hat, history[1:])
    yield times[-1], x, x


def exponential_step(
    model: Denoiser, x: Tensor, t: int, s: int, x0_hat: Tensor, others: list[tuple[float, Tensor]]
) -> Tensor:
    """x_t -> x_s, with x0_hat a polynomial in log_snr through the one at t and `others`, (log_snr,
    x0_hat) each: Eq. 8 of Lu et al. 2022, "DPM-Solver++", integrated as in Zhao et al. 2023, Eq. 5
    to 9. Without others it is a step of DDIM.

    With one other the weight is 1/2 whatever the step, as both papers have it.
    """
    (_, sigma_t, log_snr_t), (signal_s, sigma_s, log_snr_s) = levels(model, t), levels(model, s)
    h = log_snr_s - log_snr_t
    x_s = sigma_s / sigma_t * x - signal_s * math.expm1(-h) * x0_hat
    if not others or math.isinf(h):
        return x_s
    places = [
        (log_snr - log_snr_t) / h for log_snr, _ in others
    ]  # on a scale on which t is 0 and s is 1
    weights = np.array([0.5])
    if len(others) > 1:
        moments, phi = [], math.expm1(-h) / -h - 1
        for i in range(1, len(others) + 1):
            moments.append(phi * math.factorial(i) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(i + 1)
        weights = np.linalg.solve(np.vander(places, increasing=True).T, moments)
    for place, weight, (_, other) in zip(places, weights, others):
        x_s = x_s - signal_s * math.expm1(-h) * float(weight) / place * (other - x0_hat)
    return x_s
