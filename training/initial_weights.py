"""The weights that a training run begins with: random ones, or those of another model."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoints.checkpoint import load_model
from checkpoints.networks import build_model, refitted
from diffusion.schedules import SCHEDULES
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel
from runtime.image_size import Size, smaller_side

# Layers whose shapes depend on the images, the classes, --condition, --patch, --variance or
# --augment, and what messages call them: layers of a `Unet`, then of a `UNet2D`.
MAY_BE_NEW = {
    "conv_in.": "the first convolution",
    "conv_out.": "the last convolution",
    "label.": "the label embedding",
    "augmentation.": "the augmentation embedding",
    "net.conv_in.": "the first convolution",
    "net.conv_out.": "the last convolution",
    "net.class_embedding.": "the label embedding",
}
NAMED = 3  # layers that are named in the line about them
FIRST = "conv_in.weight"
# Settings of the network: the defaults of a run that begins with its weights.
NETWORK = ("width", "mults", "attention", "blocks", "patch", "film")
# Settings kept for a `UNet2D`, which no flags can describe; "unet2d" is its configuration.
KEPT = (*NETWORK, "unet2d")
# Settings of the objective that the weights were trained for: also defaults of such a run.
OBJECTIVE = (
    *("T", "schedule", "beta_small", "beta_large", "zero_terminal_snr"),
    *("parameterization", "variance", "weighting"),
)


def new_model(settings: ModelSettings) -> DiffusionModel:
    """Return a model with random initial weights, determined by its seed."""
    torch.manual_seed(settings.seed)
    return build_model(asdict(settings))


def trained_settings(path: Path, schedule: str) -> dict[str, Any]:
    """Return the settings of a model's network and objective, by their names in `ModelSettings`.

    schedule: that of the new run. If it is a file of betas, T is left out, because the file
    determines it. Raises OSError or ValueError with a one-line message if the model cannot be read.
    """
    settings = load_model(path).model.settings
    network = () if settings.unet2d else NETWORK  # `model_from` keeps the network of a `UNet2D`
    found = {name: getattr(settings, name) for name in (*network, *OBJECTIVE)}
    if schedule not in SCHEDULES:
        del found["T"]
    return found


def model_from(settings: ModelSettings, path: Path) -> tuple[DiffusionModel, str]:
    """Return a model with the averaged weights of another one, and a line about it.

    Layers in `MAY_BE_NEW` may have other shapes; they are then newly initialized. A UNet2DModel of
    diffusers is kept, whatever network the settings describe. Raises OSError or ValueError with a
    one-line message if the file cannot be read or holds another network.
    """
    loaded = load_model(path)
    if loaded.model.settings.unet2d:
        kept_settings = {name: getattr(loaded.model.settings, name) for name in KEPT}
        settings = refitted(replace(settings, **kept_settings))
    model = new_model(settings)
    theirs, network = loaded.model.unet.state_dict(), model.unet.state_dict()
    theirs = with_condition(theirs, loaded.model.settings, model)
    kept = {
        name: value
        for name, value in theirs.items()
        if name in network and network[name].shape == value.shape
    }
    new = [name for name in network if name not in kept]
    dropped = [name for name in theirs if name not in network]
    if wrong := [name for name in new + dropped if not name.startswith(tuple(MAY_BE_NEW))]:
        raise ValueError(
            f"--init-from {path} holds another network ({wrong[0]} differs): "
            f"give {network_flags(loaded.model.settings, settings.size)}"
        )
    model.unet.load_state_dict(network | kept)
    count = f"{len(kept)} of {len(network)}" if new else f"all {len(network)}"
    line = f"training begins with the averaged weights of {path}: kept {count} weight tensors"
    return model, line + describe_changes(loaded.model.settings, settings, new, dropped)


def describe_changes(
    before: ModelSettings, now: ModelSettings, new: list[str], left_out: list[str]
) -> str:
    """What differs between the two models, after the line about their weights.

    new, left_out: names of layers in `MAY_BE_NEW`.
    """
    line = ""
    if new:
        line += f"; new: {in_words(new, before, now)}"
    if left_out:
        line += f"; left out: {in_words(left_out, now, now)}"
    if now.unet2d:
        line += (
            "; its network, a UNet2DModel of diffusers, is kept, so --width, --mults, --attention, "
            "--blocks, --patch and --film change nothing"
        )
    trained, wanted = described(before), described(now)
    for name, value in trained.items():
        if value != wanted[name]:
            line += f"; the weights were trained with {name} {value}, not {wanted[name]}"
    if before.betas and not now.betas:
        line += "; give the table with --schedule FILE"
    return line


def described(settings: ModelSettings) -> dict[str, str]:
    """What the line about the weights compares."""
    return {
        "parameterization": settings.parameterization,
        "schedule": "a table of betas" if settings.betas else settings.schedule,
        "T": str(settings.T),
        "condition": settings.condition or "none",
    }


def in_words(layers: list[str], before: ModelSettings, now: ModelSettings) -> str:
    """Describe layers in words, with new and old numbers of classes or channels, and some names."""
    parts = []
    for start, words in MAY_BE_NEW.items():
        if not any(name.startswith(start) for name in layers):
            continue
        old, other, unit = before.depth, now.depth, "channels"
        if "label" in words:
            old, other, unit = before.classes, now.classes, "classes"
        if old != other and "augmentation" not in words:
            words += f" for {other} instead of {old or 'no'} {unit}"
        parts.append(words)
    more = ", .." if len(layers) > NAMED else ""
    return f"{', '.join(parts)} ({', '.join(layers[:NAMED])}{more})"


def with_condition(
    weights: dict[str, Tensor], before: ModelSettings, model: DiffusionModel
) -> dict[str, Tensor]:
    """Give the first convolution in `weights` the input channels for the condition of `model`, in
    place of those for an earlier condition.

    before: the settings that the weights were trained with. The new input weights are 0, so that
    the network ignores the condition at first. Returns `weights` unchanged if the condition is the
    same, if the images have other channels, if --patch differs, or for a `UNet2D`.
    """
    now = model.settings
    same_images = (before.depth, before.patch) == (now.depth, now.patch)
    if before.condition == now.condition or not same_images or FIRST not in weights:
        return weights
    images = weights[FIRST][:, : now.depth * now.patch**2]
    channels = now.condition_depth * now.patch**2
    return weights | {FIRST: F.pad(images, (0, 0, 0, 0, 0, channels))}


def network_flags(settings: ModelSettings, size: Size) -> str:
    """The flags of train.py that make this network for images of another size."""
    mults = ",".join(map(str, settings.mults))
    now, before = smaller_side(size), smaller_side(settings.size)
    attention = ",".join(str(side * now // before) for side in settings.attention)
    return (
        f"--width {settings.width} --mults {mults} --attention {attention} "
        f"--blocks {settings.blocks} --patch {settings.patch}"
        f"{' --film' if settings.film else ''}"
        f"{' --variance learned' if settings.variance == 'learned' else ''}"
    )
