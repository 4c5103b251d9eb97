"""Guidance: a model, guided away from worse predictions, as one denoiser.

    guided = Guided(model, y=torch.full((16,), 7), scale=2.0, interval=(100, 800))
    for t, x_t, x0_hat in dpm(guided, x, times): ...

The worse predictions are the model's own without the label (classifier-free guidance, Ho & Salimans
2022), or those of a worse model (autoguidance, Karras et al. 2024).

Letters in the shape columns: N images, C channels, K channels of a condition, H and W height and
width.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.checkpoint import load_model
from checkpoints.loaded_model import LoadedModel
from checkpoints.networks import build_model
from diffusion.denoiser import Prediction
from DiffusionModel import DiffusionModel

DEFAULT_SCALE = 2.0  # if neither --guidance nor the model gives a scale


@dataclass(frozen=True)
class Guide:
    """A worse model for autoguidance. name: identifies its weights."""

    model: DiffusionModel = field(repr=False)
    name: str


class Guided:
    """A guided model: x0_hat = worse + scale * (model - worse). Scale 1 is no guidance.

    model: a `DiffusionModel`.
    y (N,): labels, or None.
    scale: w + 1 in Eq. 6 of Ho & Salimans 2022. That equation combines predictions of eps; the same
        combination of predictions of x_0 is equivalent.
    interval: the range of t, both ends included, in which guidance applies; elsewhere the scale is
        1 (Kynkäänniemi et al. 2024, who give it in sigma).
    clip: whether x0_hat is clipped to [-1, 1], after guidance.
    guide: the worse model, or None for `model` without labels.
    condition (N,K,H,W): for an image-conditional model, see `diffusion.conditions`.

    Raises ValueError for labels that the model was not trained with.
    """

    def __init__(
        self,
        model: Any,
        y: Tensor | None = None,
        scale: float = 1.0,
        interval: tuple[float, float] = (0, float("inf")),
        clip: bool = True,
        guide: Any = None,
        condition: Tensor | None = None,
    ):
        classes = model.unet.classes
        if y is not None and not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise ValueError(
                f"the model has {classes or 'no'} classes, numbered from 0, "
                f"not {sorted(set(y.tolist()))}"
            )
        self.model, self.y, self.clip, self.guide = model, y, clip, guide
        self.scale, self.interval = scale, interval
        self.condition = condition

    def alpha_bar(self, t: int) -> float:
        return self.model.alpha_bar(t)

    def denoise(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict x_0 from x_t (N,C,H,W) at t (N,), the same t for all images."""
        low, high = self.interval
        if self.scale == 1 or not low <= int(t[0]) <= high:
            x0_hat, fraction = self.predict(self.model, x, t, self.y)
        elif self.guide is not None:
            x0_hat, fraction = self.guided_by_model(x, t)
        elif self.y is not None:
            x0_hat, fraction = self.guided_by_label(x, t, self.y)
        else:
            x0_hat, fraction = self.predict(self.model, x, t)
        return Prediction(x0_hat.clamp(-1, 1) if self.clip else x0_hat, fraction)

    def predict(self, model: Any, x: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """The prediction of a model, not clipped, for x (N,C,H,W), or for x (2N,C,H,W) whose two
        halves have the same condition."""
        if self.condition is None:
            return model.denoise(x, t, y, clip=False)
        condition = self.condition.repeat(len(x) // len(self.condition), 1, 1, 1)
        return model.denoise(x, t, y, clip=False, condition=condition)

    def guided_by_label(self, x: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Classifier-free guidance. A learned variance is taken from the conditional prediction."""
        N, null = len(x), torch.full_like(y, self.model.unet.classes)
        both, fraction = self.predict(  # (2N,C,H,W)
            self.model, torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null])
        )
        conditional, unconditional = both[:N], both[N:]
        x0_hat = unconditional + self.scale * (conditional - unconditional)
        return Prediction(x0_hat, None if fraction is None else fraction[:N])

    def guided_by_model(self, x: Tensor, t: Tensor) -> Prediction:
        """Autoguidance. A learned variance is taken from the better model."""
        x0_hat, fraction = self.predict(self.model, x, t, self.y)
        worse = self.predict(self.guide, x, t, self.y).x0_hat
        return Prediction(worse + self.scale * (x0_hat - worse), fraction)


# ---- the choice of a guide -----------------------------------------------------------------------


def choose_guidance(
    loaded: LoadedModel,
    scale: float | None,
    guide_with: str | None,
    labelled: bool,
    sampler: str | None = None,
) -> tuple[float, Guide | None]:
    """The guidance scale and, for autoguidance, the worse model.

    scale: None for the one in the model's settings or, if that is 1 and `guide_with` is given, for
    `DEFAULT_SCALE`. But with ddpm, the paper's sampler, None is no guidance unless `guide_with` is
    given. guide_with: "labels", "auto" for the early average in the checkpoint, or the path of
    another model. None is "labels" if the images have labels and the model was also trained
    without labels, or if there is no early average; otherwise "auto". labelled: whether the images
    have labels, if the model has classes. Raises ValueError or OSError, in one line.
    """
    settings = loaded.model.settings
    by_label = labelled and settings.classes > 0 and settings.label_dropout > 0
    if scale is None and guide_with is not None:
        scale = settings.guidance if settings.guidance != 1 else DEFAULT_SCALE
    elif scale is None:
        can_be_guided = by_label or loaded.early is not None
        scale = settings.guidance if can_be_guided and sampler != "ddpm" else 1.0
    if guide_with is None:
        guide_with = "labels" if by_label or loaded.early is None else "auto"
    if guide_with == "labels" or scale == 1:
        return scale, None
    guide = early_guide(loaded) if guide_with == "auto" else other_guide(loaded, Path(guide_with))
    return scale, guide


def early_guide(loaded: LoadedModel) -> Guide:
    """The model with the early average in its checkpoint. Raises ValueError if there is none."""
    if loaded.early is None:
        raise ValueError(
            f"{loaded.path} keeps no early average to guide with: give --guide-with the path of a "
            "worse model, or leave it out"
        )
    model = build_model(loaded.model.hparams)
    model.unet.load_state_dict(loaded.early.weights)
    model = model.to(loaded.model.device).eval().requires_grad_(False)
    return Guide(model, f"the average of step {loaded.early.step}")


def other_guide(loaded: LoadedModel, path: Path) -> Guide:
    """The model in another file. Raises ValueError if its image size, channels, condition, classes
    or schedule differ."""
    guide = load_model(path, loaded.model.device)
    model, worse = loaded.model, guide.model
    wanted, found = (one.settings.condition or "none" for one in (model, worse))
    if wanted != found:
        raise ValueError(
            f"--guide-with {path} has another condition than the model: {found}, not {wanted}"
        )
    compared = {
        "depth": "number of channels",
        "condition_depth": "number of channels in its condition",
        "size": "image size",
        "classes": "number of classes",
    }
    for name, what in compared.items():
        ours, theirs = getattr(model.unet, name), getattr(worse.unet, name)
        if ours != theirs:
            raise ValueError(
                f"--guide-with {path} has another {what} than the model: {theirs}, not {ours}"
            )
    if model.schedule != worse.schedule:
        raise ValueError(f"--guide-with {path} has another schedule than the model")
    return Guide(worse, f"model {guide.sha256[:16]}")
