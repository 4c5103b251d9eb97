"""The weights that a training run begins with: random ones, or those of another model."""

from dataclasses import asdict
from pathlib import Path

import torch

from checkpoints.checkpoint import load_model
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel

# Parameters whose shapes follow from the data and its classes, not from the network's flags.
OF_THE_DATA = ("conv_in.", "conv_out.", "label.", "augmentation.")


def new_model(settings: ModelSettings) -> DiffusionModel:
    """Return a model with the initial weights that belong to its seed."""
    torch.manual_seed(settings.seed)
    return DiffusionModel(**asdict(settings))


def model_from(settings: ModelSettings, path: Path) -> tuple[DiffusionModel, str]:
    """Return a model with the averaged weights of another one, and a line about it.

    Weights that depend on the data may have other shapes; they are then new. Raises OSError or
    ValueError, in one line, if the file cannot be read or holds another network.
    """
    model, loaded = new_model(settings), load_model(path)
    theirs, network = loaded.model.unet.state_dict(), model.unet.state_dict()
    kept = {
        name: value
        for name, value in theirs.items()
        if name in network and network[name].shape == value.shape
    }
    new = [name for name in network if name not in kept]
    if wrong := [name for name in new if not name.startswith(OF_THE_DATA)]:
        raise ValueError(
            f"--init-from {path} holds another network ({wrong[0]} differs): "
            f"give {network_flags(loaded.model.settings)}"
        )
    model.unet.load_state_dict(network | kept)
    line = f"it begins with the weights of {path}"
    return model, line + (f"; new are {', '.join(new)}" if new else "")


def network_flags(settings: ModelSettings) -> str:
    """The flags of train.py that make this network."""
    mults, attention = (
        ",".join(map(str, values)) for values in (settings.mults, settings.attention)
    )
    return (
        f"--width {settings.width} --mults {mults} --attention {attention} "
        f"--blocks {settings.blocks} --patch {settings.patch}"
        f"{' --film' if settings.film else ''}"
        f"{' --variance learned' if settings.variance == 'learned' else ''}"
    )
