"""Classifier-free guidance: a model, a class and a strength, as a denoiser that a sampler takes.

    guided = Guided(model, y=torch.full((16,), 7), scale=2.0, interval=(100, 800))
    for t, x_t, x0_hat in dpm(guided, x, times): ...

Letters in the shape columns: N images, C channels, H and W height and width.
"""

from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser import Prediction


class Guided:
    """Classifier-free guidance, Ho & Salimans 2022: x0_hat = without + scale * (with - without the
    label). With scale 1 it is the model for these labels, and without labels the model itself.

    model: a `DiffusionModel`. y (N,): labels, or None. scale: w + 1 in their Eq. 6 (a combination
    of predictions of x_0 is the same combination of predictions of eps). interval: guidance
    applies to the t in it, both ends included; elsewhere the scale is 1 (Kynkäänniemi et al. 2024,
    whose interval is one of sigma). clip: whether x0_hat is clipped to [-1, 1], after guidance.
    Raises ValueError for labels that the model was not trained with.
    """

    def __init__(
        self,
        model: Any,
        y: Tensor | None = None,
        scale: float = 1.0,
        interval: tuple[float, float] = (0, float("inf")),
        clip: bool = True,
    ):
        classes = model.unet.classes
        if y is not None and not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise ValueError(
                f"the model knows {classes or 'no'} classes, numbered from 0, "
                f"not {sorted(set(y.tolist()))}"
            )
        self.model, self.y, self.clip = model, y, clip
        self.scale, self.interval = scale, interval

    def alpha_bar(self, t: int) -> float:
        return self.model.alpha_bar(t)

    def denoise(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict x_0 from x_t (N,C,H,W) at t (N,), the same t for all images."""
        low, high = self.interval
        if self.y is None or self.scale == 1 or not low <= int(t[0]) <= high:
            x0_hat, fraction = self.model.denoise(x, t, self.y, clip=False)
        else:
            x0_hat, fraction = self.guided(x, t, self.y)
        return Prediction(x0_hat.clamp(-1, 1) if self.clip else x0_hat, fraction)

    def guided(self, x: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """The guided prediction; a learned variance is that of the prediction with the label."""
        N, null = len(x), torch.full_like(y, self.model.unet.classes)
        both, fraction = self.model.denoise(  # (2N,C,H,W)
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), clip=False
        )
        conditional, unconditional = both[:N], both[N:]
        x0_hat = unconditional + self.scale * (conditional - unconditional)
        return Prediction(x0_hat, None if fraction is None else fraction[:N])
