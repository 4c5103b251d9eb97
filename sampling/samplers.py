"""Samplers, from x_T to x_0. Each one is a generator over times.

    times = time_grid(model, 20, start=model.T)                          # T, .., 0: 20 steps
    x = noise()                                                          # x_T (N,C,H,W)
    for t, x_t, x0_hat in dpm(model, x, times): ...

A sampler uses only the model's `denoise(x, t)` and its schedule `alpha_bar(t)`, see `Denoiser`. It
yields (t, x_t, x0_hat) for every t in `times`. The times decrease; if the last one is 0, the result
is an image. At the last time there is no prediction, so x_t is yielded as x0_hat.

`signal` is sqrt(alpha_bar), and `sigma` is sqrt(1 - alpha_bar). `log_snr` is log(signal / sigma),
half of log(SNR), which Lu et al. 2022 call lambda. Letters in the shape columns: N images, C
channels, H and W height and width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, Prediction
from DiffusionModel import DiffusionModel

SAMPLERS = ("ddpm", "ddim", "heun", "dpm++", "unipc")
ORDER = 3  # of UniPC
Step = tuple[int, Tensor, Tensor]


def levels(model: Denoiser, t: int) -> tuple[float, float, float]:
    """signal, sigma and log_snr at t, in double precision. log_snr is infinite at t = 0, and at
    t = T if alpha_bar(T) = 0."""
    alpha_bar = model.alpha_bar(t)
    if alpha_bar == 1:
        log_snr = math.inf
    elif alpha_bar == 0:
        log_snr = -math.inf
    else:
        log_snr = 0.5 * math.log(alpha_bar / (1 - alpha_bar))
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
    """The generator of this sampler, one of `SAMPLERS`. variance is for ddpm, eta for ddim."""
    if sampler == "ddpm":
        return ddpm(model, x, times, noise, variance)
    if sampler == "ddim":
        return ddim(model, x, times, noise, eta)
    return {"heun": heun, "dpm++": dpm, "unipc": unipc}[sampler](model, x, times)


# ---- stochastic ---------------------------------------------------------------------------------


@torch.no_grad()
def ddpm(
    model: Denoiser,
    x: Tensor,
    times: Iterable[int],
    noise: Callable[[], Tensor],
    variance: str = "large",
) -> Iterator[Step]:
    """Ancestral sampling. Over all times T, T-1, .., 0 it is Algorithm 2 of Ho et al. 2020. x
    (N,C,H,W) is x_t at the first of `times`. Each step is `DiffusionModel.denoise_sample`."""
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
    """x_t -> x_s, (N,C,H,W), by `DiffusionModel.denoise_sample`. No noise is drawn if s = 0."""
    z = noise() if s > 0 else None
    return DiffusionModel.denoise_sample(model, x, t, s, z, variance, prediction)


@torch.no_grad()
def ddim(
    model: Denoiser, x: Tensor, times: Iterable[int], noise: Callable[[], Tensor], eta: float = 0.0
) -> Iterator[Step]:
    """DDIM, Eq. 12 and 16 of Song et al. 2021, "Denoising diffusion implicit models". First order.
    eta = 0 is deterministic; eta = 1 equals `ddpm` with the small variance."""
    for t, s in pairwise(times := list(times)):
        signal_t, sigma_t, _ = levels(model, t)
        signal_s, sigma_s, _ = levels(model, s)
        x0_hat = predict(model, x, t).x0_hat
        yield t, x, x0_hat
        eps = (x - signal_t * x0_hat) / sigma_t
        added = eta * sigma_s / sigma_t * max(0.0, 1 - (signal_t / signal_s) ** 2) ** 0.5
        x = signal_s * x0_hat + max(0.0, sigma_s**2 - added**2) ** 0.5 * eps
        if added:
            x = x + added * noise()
    yield times[-1], x, x


# ---- deterministic ------------------------------------------------------------------------------


@torch.no_grad()
def heun(model: Denoiser, x: Tensor, times: Iterable[int]) -> Iterator[Step]:
    """Heun's method for the probability flow ODE, Algorithm 1 of Karras et al. 2022. Second order,
    two evaluations a step. In the variables x / signal and sigma / signal, which Karras et al. call
    x and sigma, the ODE is dx/dsigma = (x - x0_hat) / sigma.

    A step that reduces sigma / signal to a quarter or less is an Euler step, with one evaluation.
    That is the last step, the first one if x_T is nearly pure noise, and others if there are few
    steps: over such a long step, the average of the two slopes would lead far off.
    """
    for t, s in pairwise(times := list(times)):
        signal_t, sigma_t, _ = levels(model, t)
        signal_s, sigma_s, _ = levels(model, s)
        x0_hat = predict(model, x, t).x0_hat
        yield t, x, x0_hat
        slope = (x - signal_t * x0_hat) / sigma_t  # d(x / signal) / d(sigma / signal): eps
        euler = signal_s * x0_hat + sigma_s * slope
        if sigma_s and sigma_t * signal_s < 4 * sigma_s * signal_t:
            slope_s = (euler - signal_s * predict(model, euler, s).x0_hat) / sigma_s
            step = sigma_s / signal_s - sigma_t / signal_t
            x = signal_s * (x / signal_t + step * (slope + slope_s) / 2)
        else:
            x = euler
    yield times[-1], x, x


class Node(NamedTuple):
    """A prediction of x_0 (N,C,H,W), and the log_snr of the x_t that it was predicted from."""

    log_snr: float
    x0_hat: Tensor


@torch.no_grad()
def dpm(model: Denoiser, x: Tensor, times: Iterable[int]) -> Iterator[Step]:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022, "DPM-Solver++". Second order in log_snr,
    one evaluation a step: the slope of x0_hat is computed from the previous prediction. The first
    step and a step to t = 0 are of first order."""
    before: list[Node] = []  # the previous node, if it has a finite log_snr
    for t, s in pairwise(times := list(times)):
        node = Node(levels(model, t)[2], predict(model, x, t).x0_hat)
        yield t, x, node.x0_hat
        x = exponential_step(model, x, t, s, node.x0_hat, before)
        before = [node] if math.isfinite(node.log_snr) else []
    yield times[-1], x, x


@torch.no_grad()
def unipc(model: Denoiser, x: Tensor, times: Iterable[int]) -> Iterator[Step]:
    """UniPC of order 3 with B(h) = e^h - 1, predicting x_0: Algorithms 5 and 6 of Zhao et al.
    2023. One evaluation a step: the prediction from x_s corrects x_s and is then used for the next
    step.

    The first and the last steps have a lower order. Earlier predictions are only used if their
    distance in log_snr is more than a quarter of the step. The yielded x0_hat was predicted from
    x_t before x_t was corrected.
    """
    history: list[Node] = []  # the newest first
    last: tuple[Tensor, int] | None = None  # the corrected x_t and the t of the previous step
    times = list(times)
    for i, (t, s) in enumerate(pairwise(times)):
        node = Node(levels(model, t)[2], predict(model, x, t).x0_hat)
        if last and history:
            newest, *older = history
            x = exponential_step(model, *last, t, newest.x0_hat, [*older, node])
        yield t, x, node.x0_hat
        # over a shorter distance, the difference of x0_hat comes mostly from the correction
        gap = (levels(model, s)[2] - node.log_snr) / 4
        kept = [one for one in history if node.log_snr - one.log_snr > gap or math.isinf(gap)]
        order = min(ORDER, len(times) - 1 - i)
        history = [node, *kept][:order] if math.isfinite(node.log_snr) else []
        last = (x, t)
        x = exponential_step(model, x, t, s, node.x0_hat, history[1:])
    yield times[-1], x, x


def exponential_step(
    model: Denoiser, x: Tensor, t: int, s: int, x0_hat: Tensor, others: list[Node]
) -> Tensor:
    """x_t -> x_s, Eq. 8 of Lu et al. 2022, "DPM-Solver++". The integral is exact if x0_hat is the
    polynomial in log_snr through its values at t and at `others`, as in Zhao et al. 2023, Eq. 5
    to 9. Without others this is a DDIM step."""
    _, sigma_t, log_snr_t = levels(model, t)
    signal_s, sigma_s, log_snr_s = levels(model, s)
    h = log_snr_s - log_snr_t
    x_s = sigma_s / sigma_t * x - signal_s * math.expm1(-h) * x0_hat
    if not others or math.isinf(h):
        return x_s
    positions = [(one.log_snr - log_snr_t) / h for one in others]  # 0 is t and 1 is s
    for position, weight, one in zip(positions, polynomial_weights(positions, h), others):
        x_s = x_s - signal_s * math.expm1(-h) * weight / position * (one.x0_hat - x0_hat)
    return x_s


def polynomial_weights(positions: list[float], h: float) -> list[float]:
    """The weights of the differences of x0_hat at these positions, for a step of length h in
    log_snr. With one other node the weight is always 1/2, as in both papers."""
    if len(positions) == 1:
        return [0.5]
    moments, phi = [], math.expm1(-h) / -h - 1
    for i in range(1, len(positions) + 1):
        moments.append(phi * math.factorial(i) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(i + 1)
    weights = np.linalg.solve(np.vander(positions, increasing=True).T, moments)
    return [float(weight) for weight in weights]
