"""Terms of the variational bound, in nats, each image's for each of its values.

    L_{t-1} = gaussian_kl(posterior's mean and log variance, the model's)        # section 3.2, Ho et al. 2020
    L_0     = -decoder_log_likelihood(x_0, the model's mean and log variance)    # section 3.3

All arguments are tensors that broadcast to (B,C,H,W): B batch, C channels, H and W height and width.
"""

import math

import torch
from torch import Tensor


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)), in nats."""
    return 0.5 * (other_log_variance - log_variance + (log_variance - other_log_variance).exp()
                  + (mean - other_mean) ** 2 * (-other_log_variance).exp() - 1)


def decoder_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the mass that N(mean, variance) has in x_0's bin of width 2/255; the bins at -1 and 1 reach to infinity.

    Eq. 13, Ho et al. 2020. x_0: in [-1, 1], one of 256 values. With the exact normal distribution function, its logarithm
    taken where it keeps its digits: both ends are mirrored into the lower tail.
    """
    scale = (-0.5 * log_variance).exp()
    low = torch.where(x_0 < -0.999, -math.inf, (x_0 - 1 / 255 - mean) * scale)
    high = torch.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) * scale)
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)         # low < high <= -low
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    ratio = torch.where(low.isinf(), -math.inf, log_low - log_high).clamp(max=-1e-7)         # log of less than 1
    return log_high + torch.log1p(-ratio.exp())
