"""What sampling and likelihood need of a model: its prediction of x_0."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Prediction(NamedTuple):
    """The prediction from x_t: x0_hat (B,C,H,W); and, with a learned variance, the position of its
    logarithm between that of the small variance (0) and that of the large one (1), (B,C,H,W)."""

    x0_hat: Tensor
    fraction: Tensor | None = None


class Denoiser(Protocol):
    """A `DiffusionModel`, one with guidance, or a distribution in closed form."""

    def denoise(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict x_0 from x_t (B,C,H,W) at t (B,)."""
        ...

    def alpha_bar(self, t: int) -> float: ...
