"""Build a model from its settings, with a `Unet` or with a UNet2DModel of diffusers.

    model = build_model(settings)           # settings by name, as in a checkpoint

A UNet2DModel is built if the setting "unet2d" holds its configuration: see `unet2d_config`.

Letters in the shape columns: B batch, C channels, H and W height and width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.unet2d_config import fitted, from_json, to_json
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel
from runtime.image_size import format_size, height_and_width

Settings = dict[str, Any]


def build_model(settings: Mapping[Any, Any]) -> DiffusionModel:
    """A new model with these settings; missing ones have their defaults.

    Raises ValueError, in one line, if they do not fit together, or if diffusers is needed but not
    installed.
    """
    chosen = ModelSettings.from_dict(dict(settings))
    network = build_unet2d(chosen) if chosen.unet2d else None
    return DiffusionModel(network, **settings)


def build_unet2d(settings: ModelSettings) -> "UNet2D":
    """Check the configuration "unet2d" of these settings, then build its network."""
    config = from_json(settings.unet2d)
    if settings.augment:
        raise ValueError(
            "a UNet2DModel of diffusers has no input for the augmentation: give --augment 0"
        )
    if settings.condition:
        raise ValueError(
            "a UNet2DModel of diffusers takes no condition: leave out --condition, or train a Unet"
        )
    if config != fitted(config, settings.network):
        raise ValueError("unet2d describes a network for other images, classes or outputs")
    known = config["num_train_timesteps"] or 0
    if config["time_embedding_type"] == "learned" and known < settings.T:
        raise ValueError(
            f"num_train_timesteps is {known}: the network has a learned embedding for each time, "
            f"and T = {settings.T} needs more of them"
        )
    check_output(config)
    return UNet2D(config)


def refitted(settings: ModelSettings) -> ModelSettings:
    """These settings with "unet2d" adapted to their images, classes, outputs and dropout."""
    if not settings.unet2d:
        return settings
    config = fitted(from_json(settings.unet2d), settings.network)
    return replace(settings, unet2d=to_json(config))


def check_output(config: Settings) -> None:
    """Raise ValueError unless the network's output has the size of its input. It runs on the meta
    device, without memory or computation."""
    with torch.device("meta"):
        network = UNet2D(config)
        try:
            shape = tuple(network(*network.example(1)).shape)
        except Exception as error:  # diffusers raises many types
            raise ValueError(refusal_message(config, error)) from None
    expected = (1, config["out_channels"], *network.shape[1:])
    if shape != expected:
        raise ValueError(f"the network's output has the shape {shape[1:]}, not {expected[1:]}")


def refusal_message(config: Settings, error: Exception) -> str:
    """The one-line message for a configuration that diffusers rejects."""
    reason = " ".join(str(error).split())[:150]
    size = format_size(config["sample_size"])
    kind = type(error).__name__
    return f"a UNet2DModel for sample_size {size} cannot have these settings ({kind}: {reason})"


class UNet2D(nn.Module):
    """A UNet2DModel of diffusers with the interface of `Unet`.

    config: a complete configuration that has been checked. Its last class means "no class", as in
    a `Unet`.
    """

    def __init__(self, config: Settings):
        super().__init__()
        self.depth, self.size = config["in_channels"], config["sample_size"]
        self.condition_depth = 0
        self.shape = (self.depth, *height_and_width(self.size))  # of an image, (C,H,W)
        self.classes, self.augmentations = (config["num_class_embeds"] or 1) - 1, 0
        self.whole_times = config["time_embedding_type"] == "learned"
        self.net = new_unet2d(config)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """x (B,C,H,W), t (B,) from 0, labels y (B,) or None -> (B,C or 2C,H,W)."""
        if self.whole_times:  # the probability flow also evaluates at fractional times
            t = t.round().long() if t.is_floating_point() else t
        if self.classes and y is None:
            y = torch.full_like(t, self.classes, dtype=torch.long)
        return self.net(x, t, class_labels=y, return_dict=False)[0]

    def recompute_activations(self, recompute: bool = True) -> None:
        """See `Unet.recompute_activations`."""
        if recompute:
            self.net.enable_gradient_checkpointing()
        else:
            self.net.disable_gradient_checkpointing()

    def example(self, B: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Arguments of `forward` for B images, all zero."""
        device = self.net.conv_in.weight.device
        x = torch.zeros(B, *self.shape, device=device)
        t = torch.zeros(B, dtype=torch.long, device=device)
        return x, t, t.clone() if self.classes else None, None


def new_unet2d(config: Settings) -> Any:
    """A UNet2DModel. Raises ValueError if diffusers is missing or rejects the configuration."""
    try:
        from diffusers import UNet2DModel  # type: ignore[reportPrivateImportUsage]
    except ModuleNotFoundError:
        raise ValueError(
            "its network is a UNet2DModel of diffusers, which is not installed: "
            "pip install diffusers"
        ) from None
    try:
        return UNet2DModel(**config)
    except Exception as error:  # diffusers raises many kinds
        raise ValueError(refusal_message(config, error)) from None
