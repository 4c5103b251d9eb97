"""The interface that samplers need from a model: its prediction of x_0 and its alpha_bar.

Letters in the shape columns: B batch, C channels, H and W height and width.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Prediction(NamedTuple):
    """The prediction from x_t: x0_hat (B,C,H,W) and, for a learned variance, `fraction` (B,C,H,W),
    which interpolates the log variance, from 0 for the small one to 1 for the large one."""

    x0_hat: Tensor
    fraction: Tensor | None = None


class Denoiser(Protocol):
    """A `DiffusionModel`, a guided one, or a distribution in closed form."""

    def denoise(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict x_0 from x_t (B,C,H,W) at t (B,)."""
        ...

    def alpha_bar(self, t: int) -> float: ...
