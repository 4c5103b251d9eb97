"""The variance of a reverse step from x_t to x_s.

The large one is beta_t, the small one that of the posterior q(x_s | x_t, x_0) (section 3.2 of Ho
et al. 2020). A learned one lies between them: `fraction` is the position of its logarithm, 0 for
the small one and 1 for the large one (Eq. 15, Nichol & Dhariwal 2021).
"""

import math

from torch import Tensor


def learned_log_variance(fraction: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """The logarithm (B,C,H,W), of large and small (B,1,1,1); -46 stands for the logarithm of 0."""
    return fraction * large.log() + (1 - fraction) * small.log().clamp(min=-46)


def reverse_deviation(
    variance: str, large: float, small: float, fraction: Tensor | None
) -> float | Tensor:
    """The standard deviation, variance "large", "small" or "learned"; all images are at the same
    t."""
    if variance == "large":
        return large**0.5
    if variance == "small":
        return small**0.5
    assert fraction is not None, "a model with a learned variance predicts a fraction"
    return (0.5 * (fraction * math.log(large) + (1 - fraction) * math.log(small))).exp()
