"""Bits/dim of images under the model: the variational bound of Ho et al. 2020.

    bound(model, x_0, noise)              # (T+1,B): every term, from one sample each
    estimate(model, x_0, noise, uniform)  # (B,): an unbiased estimate from K terms

The unit is bits for each of an image's C*H*W values. Images x_0 (B,C,H,W) are in [-1, 1] and have
256 gray levels.

    L_T     = gaussian_kl(q(x_T | x_0), N(0, I))                            # Eq. 5, Ho et al. 2020
    L_{t-1} = gaussian_kl(the posterior's mean and log variance, the model's)         # section 3.2
    L_0     = -decoder_log_likelihood(x_0, the model's mean and log variance)         # section 3.3

Letters in the shape columns: B batch, C channels, H and W height and width, T steps, K samples.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser import Prediction
from diffusion.variance import learned_log_variance


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value` in the type and on the device of `other`. The type is converted before the
    move, because not every device has double precision."""
    return value.to(other.dtype).to(other.device)


def bits_per_dim(nats: Tensor) -> Tensor:
    """Convert (B,C,H,W) in nats to (B,) in bits/dim."""
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


def gaussian_kl(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor
) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) of each value, in nats, (B,C,H,W).

    Means are (B,C,H,W). A log variance has that shape, or one that broadcasts to it.
    """
    return 0.5 * (
        other_log_variance
        - log_variance
        + (log_variance - other_log_variance).exp()
        + (mean - other_mean) ** 2 * (-other_log_variance).exp()
        - 1
    )


def decoder_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The log probability (B,C,H,W) of x_0's bin of width 2/255 under N(mean, variance), Eq. 13, Ho
    et al. 2020. The bins at -1 and 1 extend to infinity.

    x_0 (B,C,H,W): in [-1, 1], one of 256 values. mean (B,C,H,W). log_variance (B,C,H,W) or
    (B,1,1,1).

    The normal CDF is exact. Bins above the mean are mirrored, so that the logarithm of the CDF is
    always taken in the lower tail, where float32 keeps its precision.
    """
    scale = (-0.5 * log_variance).exp()
    low = torch.where(x_0 < -0.999, -math.inf, (x_0 - 1 / 255 - mean) * scale)
    high = torch.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) * scale)
    mirrored = low + high > 0
    lower, upper = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_low, log_high = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    log_ratio = torch.where(lower.isinf(), -math.inf, log_low - log_high).clamp(max=-1e-7)
    return log_high + torch.log1p(-log_ratio.exp())


def bound_term(model: Any, x_0: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
    """L_{t-1} in nats, (B,C,H,W), for t (B,) in 1..T and the model's prediction from x_t."""
    s = t - 1
    true_mean, _ = model.posterior(x_0, x_t, t, s)
    mean, _ = model.posterior(prediction.x0_hat, x_t, t, s)
    # The small variance is 0 at t = 1, so the one of t = 2 is used there, as in Ho et al.'s code.
    at_least_2 = t.clamp(min=min(2, model.T))
    small = model.posterior(x_0, x_t, at_least_2, at_least_2 - 1)[1].clamp(min=1e-20)
    first, large = (t == 1)[:, None, None, None], model.step_beta(t, s)
    if model.variance == "learned":
        assert prediction.fraction is not None
        log_variance = learned_log_variance(prediction.fraction, large, small)
    elif model.variance == "large":
        # At t = 1 the small variance is used here as well: it gives a better likelihood.
        log_variance = torch.where(first, small, large).log()
    else:
        log_variance = small.log()
    decoder = -decoder_log_likelihood(x_0, mean, log_variance)
    return torch.where(first, decoder, gaussian_kl(true_mean, small.log(), mean, log_variance))


def learned_variance_bound(
    model: Any, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """L_{t-1} in bits/dim (B,) of the network's output (B,2C,H,W), for training. Its gradient
    reaches the variance but not the mean (Nichol & Dhariwal 2021, section 3.1)."""
    C = x_0.shape[1]
    output = torch.cat([output[:, :C].detach(), output[:, C:]], dim=1)
    x0_hat, fraction = model.predictions(output, x_t, *model.signal_and_sigma(t))
    return bits_per_dim(bound_term(model, x_0, x_t, t, Prediction(x0_hat.clamp(-1, 1), fraction)))


def last_term(model: Any, x_0: Tensor) -> Tensor:
    """L_T in bits/dim (B,): the KL divergence of q(x_T | x_0) from the prior N(0, I)."""
    alpha_bar = torch.tensor(model.alpha_bar(model.T), dtype=torch.float64, device="cpu")
    mean, log_variance = alpha_bar.sqrt() * x_0.cpu().double(), torch.log1p(-alpha_bar)
    zero = torch.zeros_like(mean)
    return like(bits_per_dim(gaussian_kl(mean, log_variance, zero, zero)), x_0)


@torch.no_grad()
def one_term(model: Any, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None = None) -> Tensor:
    """L_{t-1} in bits/dim (B,) at t (B,) in 1..T, from one eps (B,C,H,W)."""
    x_t = model.q_sample(x_0, t, eps)
    prediction = model.denoise(x_t, t) if y is None else model.denoise(x_t, t, y)
    return bits_per_dim(bound_term(model, x_0, x_t, t, prediction))


def bound(model: Any, x_0: Tensor, noise: Callable[[], Tensor], y: Tensor | None = None) -> Tensor:
    """All terms of the bound in bits/dim, (T+1,B): L_0, L_1, .., L_T, with a new eps from
    `noise()` for each. It takes T evaluations of the network."""
    terms = []
    for t in range(1, model.T + 1):
        terms.append(
            one_term(model, x_0, torch.full((len(x_0),), t, device=x_0.device), noise(), y)
        )
    return torch.stack([*terms, last_term(model, x_0)])


def estimate(
    model: Any, x_0: Tensor, noise: Callable[[], Tensor], uniform: Tensor, y: Tensor | None = None
) -> Tensor:
    """An unbiased estimate of the bound in bits/dim (B,), from L_0, L_T and K of the other terms.
    It takes K + 1 evaluations of the network.

    The K terms are drawn from t = 2..T by importance sampling with p(t) proportional to 1/t,
    because the terms fall roughly as 1/t. The draws are stratified into K equally likely ranges;
    uniform (B,K) in [0,1) gives the position within each. The standard error of the mean over N
    images is the standard deviation of the N estimates / sqrt(N).
    """
    B, K = uniform.shape
    ones = torch.ones(B, dtype=torch.long, device=x_0.device)
    total = one_term(model, x_0, ones, noise(), y) + last_term(model, x_0)
    if model.T == 1:
        return total
    p = 1 / torch.arange(2, model.T + 1, dtype=torch.float64)  # (T-1,)
    p = p / p.sum()
    for k in range(K):
        position = (k + uniform[:, k].cpu().double()) / K  # (B,) in [0,1)
        index = torch.searchsorted(p.cumsum(0), position).clamp(max=len(p) - 1)  # (B,)
        term = one_term(model, x_0, (index + 2).to(x_0.device), noise(), y)
        total = total + term / like(K * p[index], x_0)
    return total
