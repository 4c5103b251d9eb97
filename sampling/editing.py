"""Editing images: DDIM inversion, inpainting, and interpolation.

    *_, (T, latent, _) = invert(model, image, times[::-1])      # x_T, which ddim maps to the image
    for t, x_t, x0_hat in repaint(model, x, times, noise, known, mask): ...

`invert` and `repaint` are generators over times and need only a `Denoiser`, like the samplers.

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from sampling.samplers import Step, ancestral_step, levels, predict


@torch.no_grad()
def invert(model: Denoiser, x: Tensor, times: Iterable[int], iterations: int = 5) -> Iterator[Step]:
    """DDIM inversion: from x_0 = `x` to the x_t (N,C,H,W) that `ddim` with eta = 0 maps back to
    x_0. The times increase from 0.

    Each step solves the DDIM equation for x_s by `iterations` fixed-point iterations (Pan et al.
    2023, "AIDI"), so that sampling reproduces the image. They begin with the inversion of Song et
    al. 2021, section 5.4, with the eps of the previous step; in the first step they begin with x_0.
    The x0_hat yielded with x_t was predicted at the next time. The model must not clip its
    predictions.
    """
    eps: Tensor | None = None
    for t, s in pairwise(times := list(times)):
        signal_t, sigma_t, _ = levels(model, t)
        signal_s, sigma_s, _ = levels(model, s)
        x_s, x0_hat = x, x
        if eps is not None:
            x_s = signal_s / signal_t * x + (sigma_s - signal_s * sigma_t / signal_t) * eps
        for _ in range(iterations):
            x0_hat = predict(model, x_s, s).x0_hat
            if signal_s:
                eps = (x_s - signal_s * x0_hat) / sigma_s
            else:
                eps = (x - signal_t * x0_hat) / sigma_t
            x_s = signal_s / signal_t * x + (sigma_s - signal_s * sigma_t / signal_t) * eps
        yield t, x, x0_hat
        x = x_s
    yield times[-1], x, x


@torch.no_grad()
def repaint(
    model: Denoiser,
    x: Tensor,
    times: Iterable[int],
    noise: Callable[[], Tensor],
    known: Tensor,
    mask: Tensor,
    variance: str = "small",
    jump: int = 10,
    rounds: int = 5,
) -> Iterator[Step]:
    """Inpaint where `mask` (H,W) is true and keep `known` (C,H,W) elsewhere: Algorithm 1 of
    Lugmayr et al. 2022, "RePaint".

    After each ancestral step, the known pixels are replaced by a sample of q(x_s | x_0 = known).
    Every `jump` steps are done `rounds` times. Between two rounds, noise is added to return to the
    first t of these steps. This makes the two regions consistent. Each t is yielded once, on its
    last visit.
    """
    times = list(times)
    walk = [times[0]]
    for begin in range(0, len(times) - 1, jump):
        down = times[begin : begin + jump + 1]
        walk += (down[1:] + down[:-1][::-1]) * (rounds - 1) + down[1:]
    last_visit = {t: i for i, t in enumerate(walk)}
    for i, (t, s) in enumerate(pairwise(walk)):
        if s < t:
            prediction = predict(model, x, t)
            x_s = ancestral_step(model, x, t, s, noise, variance, prediction)
            if last_visit[t] == i:
                yield t, x, prediction.x0_hat
            signal, sigma, _ = levels(model, s)
            noised = signal * known + (sigma * noise() if sigma else 0.0)
            x = torch.where(mask, x_s, noised)
        else:
            ratio = model.alpha_bar(s) / model.alpha_bar(t)
            x = ratio**0.5 * x + (1 - ratio) ** 0.5 * noise()
    yield times[-1], x, x


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation of two latents (C,H,W), which preserves the norm (Song et al. 2021,
    appendix D.5)."""
    cosine = float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if angle < 1e-4:
        return (1 - fraction) * a + fraction * b
    weighted = math.sin((1 - fraction) * angle) * a + math.sin(fraction * angle) * b
    return weighted / math.sin(angle)
