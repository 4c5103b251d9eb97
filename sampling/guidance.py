"""What is asked of a model: a class, and how strongly. As a model that a sampler can be handed.

    ask = Guided(model, y=torch.full((16,), 7), scale=2.0, interval=(100, 800))
    for t, x_t, x0_hat in dpm(ask, x, times): ...

Letters in the shape columns: N images, C channels, H and W height and width.
"""

from typing import Any

import torch
from torch import Tensor


class Guided:
    """Classifier-free guidance, Ho & Salimans 2022: x0_hat = without + scale * (with - without the label).

    model: a `DiffusionModel`. y (N,): labels, or None for the model without any. scale: 1 asks for the class and no more (their
    w = scale - 1, Eq. 6; a combination of predictions of x_0 is the same one of eps). interval: the t, both ends
    included, in which guidance applies; elsewhere scale is 1 (Kynkäänniemi et al. 2024, whose interval is in sigma).
    clip: x0_hat to [-1, 1], after guidance. Raises ValueError for labels that the model was not trained with.
    """

    def __init__(
        self,
        model: Any,
        y: Tensor | None = None,
        scale: float = 1.0,
        interval: tuple[float, float] = (0, float("inf")),
        clip: bool = True,
    ):
        if y is not None and (
            not model.unet.classes or not 0 <= int(y.min()) <= int(y.max()) < model.unet.classes
        ):
            raise ValueError(
                f"the model knows {model.unet.classes or 'no'} classes, numbered from 0, not {sorted(set(y.tolist()))}"
            )
        self.model, self.y, self.scale, self.interval, self.clip = model, y, scale, interval, clip

    def alpha_bar(self, t: int) -> float:
        return self.model.alpha_bar(t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """x (N,C,H,W) at t (N,), the same for all -> x0_hat (N,C,H,W)."""
        return self._answer(self.model.denoise, x, t)[0]

    def denoise_and_share(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`denoise`, and with it where the learned variance lies, with the label."""
        x0_hat, share = self._answer(self.model.denoise_and_share, x, t)
        return x0_hat, share

    def _answer(self, ask: Any, x: Tensor, t: Tensor) -> list[Tensor]:
        """What `ask` gives for x, t and the label, x0_hat first, and that guided."""
        N, y = len(x), self.y
        if y is None or self.scale == 1 or not self.interval[0] <= int(t[0]) <= self.interval[1]:
            answer = ask(x, t, y, clip=False)
            x0_hat, *rest = answer if isinstance(answer, tuple) else (answer,)
        else:
            nothing = torch.full_like(y, self.model.unet.classes)
            answer = ask(
                torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, nothing]), clip=False
            )  # (2N,C,H,W)
            both, *rest = answer if isinstance(answer, tuple) else (answer,)
            x0_hat, rest = (
                both[N:] + self.scale * (both[:N] - both[N:]),
                [part[:N] for part in rest],
            )
        return [x0_hat.clamp(-1, 1) if self.clip else x0_hat, *rest]
