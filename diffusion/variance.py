"""The variance of a reverse step from x_t to x_s.

The large variance is beta_t, and the small one is that of the posterior q(x_s | x_t, x_0) (section
3.2 of Ho et al. 2020). A learned variance lies between them: `fraction` interpolates its logarithm,
from 0 for the small one to 1 for the large one (Eq. 15, Nichol & Dhariwal 2021).

Letters in the shape columns: B batch, C channels, H and W height and width.
"""

import math

from torch import Tensor


def learned_log_variance(fraction: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """The log variance (B,C,H,W), Eq. 15, Nichol & Dhariwal 2021: fraction (B,C,H,W) interpolates
    between small and large (B,1,1,1). log 0 is replaced by -46."""
    return fraction * large.log() + (1 - fraction) * small.log().clamp(min=-46)


def reverse_deviation(
    variance: str, large: float, small: float, fraction: Tensor | None
) -> float | Tensor:
    """The standard deviation of a step for the variance "large", "small" or "learned": a float, or
    (B,C,H,W) for "learned", Eq. 15, Nichol & Dhariwal 2021. All images are at the same t."""
    if variance == "large":
        return large**0.5
    if variance == "small":
        return small**0.5
    assert fraction is not None, "a model with a learned variance predicts a fraction"
    return (0.5 * (fraction * math.log(large) + (1 - fraction) * math.log(small))).exp()
