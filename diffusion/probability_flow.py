"""Bits/dim of images under the probability flow ODE of Song et al. 2021, "Score-based generative
modeling through stochastic differential equations".

    flow(model, x_0, uniform, noise)      # (B,)

The ODE has the same marginals as the diffusion (section 4.3 and appendix D.2 of that paper).
Letters in the shape columns: B batch, C channels, H and W height and width, D = C*H*W, T steps.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion.likelihood import like

LEVELS = 127.5  # gray levels per unit of pixel value


def at_ratio(model: Any, ratio: float) -> tuple[float, float, float]:
    """signal, sigma and the real-valued t at which sigma / signal is `ratio`. Between two entries
    of the table, the log ratio is interpolated linearly in t. Below the first entry, t is 1, the
    smallest time that the network was trained at."""
    known = []
    for alpha_bar in model.schedule["alpha_bar"][1:]:
        known.append(math.log((1 - alpha_bar) / alpha_bar) / 2 if alpha_bar else math.inf)
    signal = 1 / math.hypot(1, ratio)
    t = float(np.interp(math.log(ratio), known, np.arange(1, len(known) + 1)))
    return signal, ratio * signal, t


def denoise_at(model: Any, ratio: float, x: Tensor, y: Tensor | None = None) -> Tensor:
    """x0_hat (B,C,H,W), not clipped, from x (B,C,H,W) in which sigma / signal is `ratio`. The ratio
    may be any number above 0, including one between those of the times used in training."""
    signal, sigma, t = at_ratio(model, ratio)
    output = model(x, torch.full((len(x),), t, device=x.device), y)
    return model.predictions(output, x, signal, sigma).x0_hat


def flow_slope(
    model: Any, ratio: float, z: Tensor, signs: list[Tensor], y: Tensor | None
) -> np.ndarray:
    """dz/du and its divergence, -d log p(z)/du, at z (B,C,H,W): float64 (B*D + B,). signs: vectors
    for Hutchinson's estimate. Raises ValueError if a value is not finite, because the solver would
    reduce its step forever."""
    with torch.enable_grad():
        x0_hat = denoise_at(model, ratio, z / math.hypot(1, ratio), y)
        gradients = [torch.autograd.grad(x0_hat, z, v, retain_graph=True)[0] for v in signs]
        traces = [(g * v).flatten(1).sum(1) for g, v in zip(gradients, signs)]
    divergence = z[0].numel() - torch.stack(traces).mean(0)  # (B,)
    slope = torch.cat([(z - x0_hat).detach().flatten(), divergence]).cpu().double().numpy()
    if not np.isfinite(slope).all():
        raise ValueError(
            "the probability flow cannot be integrated: its slope is not finite at "
            f"sigma / signal = {ratio:.3g}"
        )
    return slope


def flow(
    model: Any,
    x_0: Tensor,
    uniform: Tensor,
    noise: Callable[[], Tensor],
    y: Tensor | None = None,
    probes: int = 1,
    tolerance: float = 1e-4,
    smallest: float = 1e-3,
) -> Tensor:
    """Bits/dim (B,) of images x_0 (B,C,H,W), dequantized by `uniform` (B,C,H,W) in [0,1). They are
    an upper bound for the images of 256 levels (Theis et al. 2016).

    With u = log(sigma / signal) and z = x / signal, the ODE is dz/du = z - x0_hat(z), and
    d log p(z)/du = -div(z - x0_hat(z)). RK45 integrates it with this relative and absolute
    `tolerance`, from sigma / signal = `smallest`, where z is taken to be the image, to t = T (T - 1
    if alpha_bar(T) = 0), where z is taken to be noise. The divergence is estimated by Hutchinson's
    method with `probes` vectors of -1 and 1 for each image, from the signs of `noise()` (B,C,H,W).
    All images of a batch share the solver's steps, so another batch size changes the result within
    the tolerance. Raises ValueError if the network's output is not finite.
    """
    B, D = x_0.flatten(1).shape
    z_0 = x_0 + (uniform - 0.5) / LEVELS
    signs = [like(noise().sign(), x_0) for _ in range(probes)]
    last = model.T if model.alpha_bar(model.T) else model.T - 1  # where sigma / signal is finite
    largest = math.sqrt(1 / model.alpha_bar(last) - 1)

    def slope(u: float, state: np.ndarray) -> np.ndarray:
        z = like(torch.from_numpy(state[: B * D]), x_0).view_as(x_0).requires_grad_()
        return flow_slope(model, math.exp(u), z, signs, y)

    start = np.append(z_0.flatten().cpu().double().numpy(), np.zeros(B))
    span = (math.log(smallest), math.log(largest))
    solved = solve_ivp(slope, span, start, rtol=tolerance, atol=tolerance, method="RK45")
    if not solved.success:
        raise ValueError(f"the probability flow cannot be integrated: {solved.message}")
    z_T, change = solved.y[:-B, -1].reshape(B, D), solved.y[-B:, -1]
    signal = model.alpha_bar(last) ** 0.5
    log_p = -0.5 * (signal * z_T) ** 2 - 0.5 * math.log(2 * math.pi) + math.log(signal)
    nats = -(log_p.sum(1) + change) / D  # log p(z_0) = log p(z_T) + change
    return like(torch.from_numpy(nats / math.log(2) + math.log2(LEVELS)), x_0)
