"""Images of one's own, edited: into their latents and back, painted anew in part, and from one to another.

    *_, (T, latent, _) = invert(model, image, times[::-1])             # image -> the x_T from which ddim comes back to it
    for t, x_t, x0_hat in repaint(model, x, times, noise, known, mask): ...

Generators over times that know of a model what `Sampler` does. Letters in the shape columns: N images, C channels,
H and W height and width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sampling.samplers import Denoiser, Step, ancestral, levels, predict


@torch.no_grad()
def invert(model: Denoiser, x: Tensor, times: Iterable[int], tries: int = 5) -> Iterator[Step]:
    """`ddim` with eta 0 the other way: the x_t (N,C,H,W) from which it goes to x_0 = `x`; times go up, from 0.

    Each step solves ddim's own equation for x_s by `tries` fixed-point iterations (Pan et al. 2023, "AIDI"), so that
    going back gives the image again; with a single one it is the inversion of Song et al. 2021, section 5.4. The x0_hat
    beside x_t was made at the next time. Give it a model that does not clip.
    """
    eps: Tensor | None = None
    for t, s in pairwise(times := list(times)):
        (signal_t, sigma_t, _), (signal_s, sigma_s, _) = levels(model, t), levels(model, s)
        x_s, x0_hat = (
            (
                x
                if eps is None
                else signal_s / signal_t * x + (sigma_s - signal_s * sigma_t / signal_t) * eps
            ),
            x,
        )
        for _ in range(tries):
            x0_hat = predict(model, x_s, s)
            eps = (
                (x_s - signal_s * x0_hat) / sigma_s
                if signal_s
                else (x - signal_t * x0_hat) / sigma_t
            )
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
    """Paint anew where `mask` (H,W) is true, and keep `known` (C,H,W) elsewhere: Algorithm 1 of Lugmayr et al. 2022, "RePaint".

    Ancestral steps, after each of which what is known is replaced by q(x_s | x_0 = known); after every `jump` steps
    noise is added again for as many, `rounds` times in all, so that both parts come to fit. Each t is yielded once, the
    last time it is passed.
    """
    times = list(times)
    walk = [times[0]]
    for begin in range(0, len(times) - 1, jump):
        down = times[begin : begin + jump + 1]
        walk += (down[1:] + down[:-1][::-1]) * (rounds - 1) + down[1:]
    final = {t: i for i, t in enumerate(walk)}
    for i, (t, s) in enumerate(pairwise(walk)):
        if s < t:
            x_s, x0_hat = ancestral(model, x, t, s, noise, variance)
            if final[t] == i:
                yield t, x, x0_hat
            signal, sigma, _ = levels(model, s)
            x = torch.where(mask, x_s, signal * known + (sigma * noise() if sigma else 0.0))
        else:
            ratio = model.alpha_bar(s) / model.alpha_bar(t)
            x = ratio**0.5 * x + (1 - ratio) ** 0.5 * noise()
    yield times[-1], x, x


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Between two noises (C,H,W), on the great circle, so that what lies between is as loud (Song et al. 2021, appendix D.5)."""
    cosine = float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if angle < 1e-4:
        return (1 - share) * a + share * b
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
