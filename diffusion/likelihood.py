"""Bits/dim of images under the model: the variational bound of Ho et al. 2020, and the probability flow's likelihood.

    bound(model, x_0, noise)                          # (T+1,B): every term, each with one sample; their sum is the bound
    estimate(model, x_0, noise, uniform)              # (B,): the bound from few terms, where uniform is (B,K)
    flow(model, x_0, uniform, noise)                  # (B,): of the ordinary differential equation that has the same marginals

All in bits for each of an image's C*H*W values, of images x_0 (B,C,H,W) in [-1, 1] that have 256 levels.

    L_T     = gaussian_kl(q(x_T | x_0), N(0, I))                                 # Eq. 5, Ho et al. 2020
    L_{t-1} = gaussian_kl(posterior's mean and log variance, the model's)        # section 3.2
    L_0     = -decoder_log_likelihood(x_0, the model's mean and log variance)    # section 3.3

Letters in the shape columns: B batch, C channels, H and W height and width, T the number of steps, K samples.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = 127.5  # gray levels in a distance of 1


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value` with the type and on the device of `other`. Double precision stays on the CPU: not every device has it."""
    return value.to(other.dtype).to(other.device)


def gaussian_kl(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor
) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)), in nats."""
    return 0.5 * (
        other_log_variance
        - log_variance
        + (log_variance - other_log_variance).exp()
        + (mean - other_mean) ** 2 * (-other_log_variance).exp()
        - 1
    )


def decoder_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the mass that N(mean, variance) has in x_0's bin of width 2/255; the bins at -1 and 1 reach to infinity.

    Eq. 13, Ho et al. 2020. x_0: in [-1, 1], one of 256 values. With the exact normal distribution function, its logarithm
    taken where it keeps its digits: both ends are mirrored into the lower tail.
    """
    scale = (-0.5 * log_variance).exp()
    low = torch.where(x_0 < -0.999, -math.inf, (x_0 - 1 / 255 - mean) * scale)
    high = torch.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) * scale)
    mirrored = low + high > 0
    low, high = (
        torch.where(mirrored, -high, low),
        torch.where(mirrored, -low, high),
    )  # low < high <= -low
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    ratio = torch.where(low.isinf(), -math.inf, log_low - log_high).clamp(
        max=-1e-7
    )  # log of less than 1
    return log_high + torch.log1p(-ratio.exp())


def bound_term(
    model: Any, x_0: Tensor, x_t: Tensor, t: Tensor, x0_hat: Tensor, share: Tensor
) -> Tensor:
    """L_{t-1} in nats, (B,C,H,W), t (B,) in 1..T: for x0_hat (B,C,H,W) and, where the variance is learned, its `share`."""
    s = t - 1
    (true_mean, _), (mean, _) = model.posterior(x_0, x_t, t, s), model.posterior(x0_hat, x_t, t, s)
    small = model.posterior(x_0, x_t, t.clamp(min=min(2, model.T)))[1].clamp(
        min=1e-20
    )  # it is 0 at t = 1: there as at 2
    first, large = (t == 1)[:, None, None, None], model.step_beta(t, s)
    if model.variance == "learned":
        log_variance = model.log_variance(share, large, small)
    else:  # that of the first step is the small one in both: Ho et al.'s code has it so, for the decoder's sake
        log_variance = (
            torch.where(first, small, large) if model.variance == "large" else small
        ).log()
    return torch.where(
        first,
        -decoder_log_likelihood(x_0, mean, log_variance),
        gaussian_kl(true_mean, small.log(), mean, log_variance),
    )


def last_term(model: Any, x_0: Tensor) -> Tensor:
    """L_T in bits/dim (B,): how far q(x_T | x_0) is from the noise that sampling begins with."""
    alpha_bar = torch.tensor(model.alpha_bar(model.T), dtype=torch.float64, device="cpu")
    mean, log_variance = alpha_bar.sqrt() * x_0.cpu().double(), torch.log1p(-alpha_bar)
    return like(
        gaussian_kl(mean, log_variance, torch.zeros_like(mean), torch.zeros_like(mean)).mean(
            dim=(1, 2, 3)
        )
        / math.log(2),
        x_0,
    )


@torch.no_grad()
def one_term(model: Any, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None = None) -> Tensor:
    """L_{t-1} in bits/dim (B,) at t (B,) in 1..T, from one eps (B,C,H,W)."""
    x_t = model.q_sample(x_0, t, eps)
    x0_hat, share = model.denoise_and_share(x_t, t, *(() if y is None else (y,)))
    return bound_term(model, x_0, x_t, t, x0_hat, share).mean(dim=(1, 2, 3)) / math.log(2)


def bound(model: Any, x_0: Tensor, noise: Callable[[], Tensor], y: Tensor | None = None) -> Tensor:
    """All terms of the bound in bits/dim, (T+1,B): L_0, L_1, .., L_T, each from an eps of its own. T evaluations."""
    terms = [
        one_term(model, x_0, torch.full((len(x_0),), t, device=x_0.device), noise(), y)
        for t in range(1, model.T + 1)
    ]
    return torch.stack([*terms, last_term(model, x_0)])


def estimate(
    model: Any, x_0: Tensor, noise: Callable[[], Tensor], uniform: Tensor, y: Tensor | None = None
) -> Tensor:
    """The bound in bits/dim (B,), without bias, from L_0, L_T and K of the others: K + 1 evaluations of the network.

    uniform (B,K) in [0,1): where t falls in the K equally likely parts of 2..T, with p(t) proportional to 1/t, because
    the terms fall about as fast. The standard error of the mean over images is their standard deviation / sqrt(N).
    """
    B, K = uniform.shape
    first = one_term(model, x_0, torch.ones(B, dtype=torch.long, device=x_0.device), noise(), y)
    total = first + last_term(model, x_0)
    if model.T == 1:
        return total
    p = 1 / torch.arange(2, model.T + 1, dtype=torch.float64)  # (T-1,)
    p = p / p.sum()
    for k in range(K):
        at = torch.searchsorted(p.cumsum(0), (k + uniform[:, k].cpu().double()) / K).clamp(
            max=len(p) - 1
        )  # (B,)
        total = total + one_term(model, x_0, (at + 2).to(x_0.device), noise(), y) / like(
            K * p[at], x_0
        )
    return total


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
    """Bits/dim (B,) of images made continuous by `uniform` (B,C,H,W) in [0,1), under the probability flow of Song et al.
    2021, "Score-based generative modeling", section 4.3 and appendix D.2. An upper bound for the 256 levels (Theis et al. 2016).

    With u = log(sigma / signal) and z = x / signal it reads dz/du = z - x0_hat(z), d log p(z)/du = -div(z - x0_hat(z)), from
    sigma / signal = `smallest`, at which z is taken to be the image, to t = T, at which it is noise. Integrated by RK45 with the
    relative and absolute `tolerance`; the divergence is Hutchinson's estimate with `probes` vectors of -1 and 1 for each
    image, from `noise()` (B,C,H,W). The steps are those of the whole batch, so that other batches change what lies within
    the tolerance. Raises ValueError where it cannot be integrated: the network's output is not finite.
    """
    from scipy.integrate import solve_ivp

    shape, (B, D) = x_0.shape, x_0.flatten(1).shape
    z_0 = x_0 + (uniform - 0.5) / LEVELS
    signs = [like(noise().sign(), x_0) for _ in range(probes)]
    last = model.T if model.alpha_bar(model.T) else model.T - 1  # where sigma / signal is finite
    largest = math.sqrt(1 / model.alpha_bar(last) - 1)

    def slope(u: float, state: np.ndarray) -> np.ndarray:
        ratio = math.exp(u)
        z = like(torch.from_numpy(state[: B * D]), x_0).view(shape).requires_grad_()
        with torch.enable_grad():
            x0_hat = model.denoise_at(ratio, z / math.hypot(1, ratio), *(() if y is None else (y,)))
            traces = [
                (torch.autograd.grad(x0_hat, z, v, retain_graph=True)[0] * v).flatten(1).sum(1)
                for v in signs
            ]
        divergence = D - torch.stack(traces).mean(0)  # (B,)
        found = torch.cat([(z - x0_hat).detach().flatten(), divergence]).cpu().double().numpy()
        if not np.isfinite(found).all():  # the solver would take ever smaller steps, or end early
            raise ValueError(
                f"the probability flow cannot be followed: its slope is not finite at sigma / signal = {ratio:.3g}"
            )
        return found

    solved = solve_ivp(
        slope,
        (math.log(smallest), math.log(largest)),
        np.append(z_0.flatten().cpu().double().numpy(), np.zeros(B)),
        rtol=tolerance,
        atol=tolerance,
        method="RK45",
    )
    if not solved.success:
        raise ValueError(f"the probability flow cannot be followed: {solved.message}")
    z_T, change = (
        solved.y[:-B, -1].reshape(B, D),
        solved.y[-B:, -1],
    )  # log p(z_0) = log p(z_T) + change
    signal = model.alpha_bar(last) ** 0.5
    log_p = -0.5 * (signal * z_T) ** 2 - 0.5 * math.log(2 * math.pi) + math.log(signal)
    nats = -(log_p.sum(1) + change) / D
    return like(torch.from_numpy(nats / math.log(2) + math.log2(LEVELS)), x_0)
