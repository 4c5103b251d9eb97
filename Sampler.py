"""From x_T to x_0: every sampler as a generator over times.

    x = noise()                                                          # x_T (N,C,H,W)
    for t, x_t, x0_hat in ddpm(model, x, range(T, -1, -1), noise): ...

A sampler knows the model's `denoise(x, t) -> x0_hat` and its schedule `alpha_bar(t)`, and nothing else. It yields
(t, x_t, x0_hat) for every t in `times`, which go down, to 0 for an image; at the last one x_t is its own prediction.

Letters in the shape columns: N images, C channels, H and W height and width.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

IMAGE = 5  # what this randomness is for: DiffusionModel lists all purposes
Step = tuple[int, Tensor, Tensor]


class Denoiser(Protocol):
    """What a sampler needs of a model; `DiffusionModel` is one, a closed-form Gaussian is another."""

    def denoise(self, x: Tensor, t: Tensor) -> Tensor: ...
    def alpha_bar(self, t: int) -> float: ...


class Noise:
    """Standard normal noise in which image i has a generator of its own, seeded by (seed, i): it is the same in any batch.

    `Noise(seed, range(8, 16), (C, H, W))()` -> the next (8,C,H,W). It is drawn on the CPU, so that a seed means the
    same pictures on every device.
    """

    def __init__(self, seed: int, indices: Iterable[int], shape: tuple[int, ...], device: str | torch.device = "cpu"):
        keys = [np.random.SeedSequence((seed, IMAGE, i)).generate_state(1, np.uint64)[0] for i in indices]
        self.generators = [torch.Generator().manual_seed(int(key)) for key in keys]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


@torch.no_grad()
def ddpm(model: Denoiser, x: Tensor, times: Iterable[int], noise: Callable[[], Tensor], variance: str = "large") -> Iterator[Step]:
    """Ancestral sampling, Algorithm 2 of Ho et al. 2020; with times T, T-1, .., 0 it is the paper's.

    x (N,C,H,W) is x_t at the first of `times`. Where times are left out, beta(t) becomes 1 - alpha_bar(t) / alpha_bar(s)
    in the posterior q(x_s | x_t, x_0), Eq. 6 and 7. variance: sigma_t^2 is that beta ("large") or the posterior's
    variance ("small"), section 3.2. No noise is added in the last step.
    """
    times = list(times)
    for t, s in pairwise(times):
        x0_hat = model.denoise(x, torch.full((len(x),), t, device=x.device))     # (N,C,H,W)
        yield t, x, x0_hat
        alpha_bar_t, alpha_bar_s = model.alpha_bar(t), model.alpha_bar(s)
        beta = 1 - alpha_bar_t / alpha_bar_s                                     # beta(t) for s = t - 1
        mean = (alpha_bar_s**0.5 * beta * x0_hat + (1 - beta) ** 0.5 * (1 - alpha_bar_s) * x) / (1 - alpha_bar_t)
        sigma_squared = beta if variance == "large" else beta * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        x = mean + sigma_squared**0.5 * noise() if s > 0 else mean
    yield times[-1], x, x
