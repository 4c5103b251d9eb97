"""Convert a network to a configuration of diffusers' UNet2DModel, and back.

    config = unet_config(settings)                 # settings: those of a `DiffusionModel`, by name
    settings = unet_settings(config, class_names=())

A configuration that no `Unet` can have becomes the setting "unet2d": see `networks`. A `Unet` that
cannot be expressed as a UNet2DModel is an error.
"""

from typing import Any

import torch
from torch import nn

from checkpoints.json_values import shorten, to_float
from checkpoints.unet2d_config import DEFAULTS, check_config, check_levels, from_json, to_json
from diffusion.settings import DERIVED, NETWORK, check_settings
from runtime.image_size import Size, size_of, smaller_side
from Unet import Unet

Settings = dict[str, Any]


def unet_config(settings: Settings) -> Settings:
    """The configuration of the equivalent UNet2DModel. Raises ValueError if there is none."""
    if settings["unet2d"]:
        return from_json(settings["unet2d"])
    network = {name: settings[name] for name in (*NETWORK, *DERIVED)}
    groups = number_of_groups(network)
    levels = range(len(network["mults"]))
    side = smaller_side(network["size"])
    attends = [side // 2**level in network["attention"] for level in levels]
    down = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends)
    up = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends))
    return DEFAULTS | {
        "sample_size": network["size"],
        "in_channels": network["depth"],
        "out_channels": network["depth"] * network["outputs"],
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "block_out_channels": tuple(network["width"] * mult for mult in network["mults"]),
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": network["blocks"],
        "downsample_padding": 0,
        "dropout": network["dropout"],
        "attention_head_dim": None,
        "norm_num_groups": groups,
        "norm_eps": 1e-6,
        "resnet_time_scale_shift": "scale_shift" if network["film"] else "default",
        # with None and scale_shift, the middle attention would have no normalization
        "attn_norm_num_groups": groups if network["film"] else None,
        "num_class_embeds": network["classes"] + 1 if network["classes"] else None,
    }


def number_of_groups(network: Settings) -> int:
    """The number of groups of all normalizations. Raises ValueError if it is not the same for all,
    or if patch > 1: UNet2DModel supports neither."""
    with torch.device("meta"):  # allocates no memory
        modules = list(Unet(**network).modules())
    groups = sorted({module.num_groups for module in modules if isinstance(module, nn.GroupNorm)})
    patch = network["patch"]
    if patch > 1:
        raise ValueError(
            f"UNet2DModel cannot fold patches of {patch}x{patch} pixels into channels: "
            "choose safetensors or ONNX"
        )
    if len(groups) > 1:
        raise ValueError(
            "UNet2DModel has one norm_num_groups for all layers, and these have "
            f"{', '.join(map(str, groups))} (where every level's channels are a multiple of 128, "
            "all have 32): choose safetensors or ONNX"
        )
    return groups[0]


def unet_settings(config: Settings, class_names: tuple[str, ...]) -> Settings:
    """Convert a configuration of UNet2DModel to arguments of `Unet`, "class_names" and "unet2d".

    If no `Unet` is equivalent, "unet2d" is the configuration, and the arguments are those of the
    most similar `Unet`. The given class names are used if the network has a label for each of them
    and one more for "no class". Otherwise there is a numbered class for each label. Raises
    ValueError with the name of an unsupported setting.
    """
    given = {
        name: value
        for name, value in config.items()
        if name in DEFAULTS or (name[:1] != "_" and value is not None)
    }
    config = DEFAULTS | given
    config["sample_size"] = read_sample_size(config["sample_size"])
    check_levels(config["block_out_channels"], config["down_block_types"])
    labels = config["num_class_embeds"]
    if labels is not None and (type(labels) is not int or not 1 <= labels <= 100_000):
        raise ValueError(
            f"num_class_embeds must be a whole number from 1 to 100000, not {shorten(labels)}"
        )
    if labels and (labels == 1 or len(class_names) != labels - 1):
        class_names = tuple(map(str, range(labels)))
    settings = network_settings(config, class_names)
    if not is_same_network(config, settings):
        check_config(config)
        if labels:  # one more label for "no class", as in a `Unet`
            config["num_class_embeds"] = len(class_names) + 1
        settings["unet2d"] = to_json(config)
    check_settings(settings)
    return settings


def read_sample_size(value: Any) -> Size:
    """Convert sample_size, one number or height and width, to a size. Raises ValueError, in one
    line."""
    sides = value if isinstance(value, tuple) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(
            f"sample_size must be a whole number, or height and width, not {shorten(value)}"
        )
    return size_of(*sides)


def network_settings(config: Settings, class_names: tuple[str, ...]) -> Settings:
    """The arguments of the `Unet` most similar to a configuration, and "class_names"."""
    channels = config["block_out_channels"]
    side = smaller_side(config["sample_size"])
    attends = [kind == "AttnDownBlock2D" for kind in config["down_block_types"]]
    return {
        "depth": config["in_channels"],
        "condition_depth": 0,
        "width": channels[0],
        "mults": tuple(max(1, count // channels[0]) for count in channels),
        "attention": tuple(side // 2**level for level, attend in enumerate(attends) if attend),
        "blocks": config["layers_per_block"],
        "dropout": to_float(config["dropout"]),
        "size": config["sample_size"],
        "patch": 1,
        "film": config["resnet_time_scale_shift"] == "scale_shift",
        "classes": len(class_names) if config["num_class_embeds"] else 0,
        "outputs": 1 if config["out_channels"] == config["in_channels"] else 2,
        "augmentations": 0,
        "class_names": class_names,
        "unet2d": "",
    }


def is_same_network(config: Settings, settings: Settings) -> bool:
    """Whether the network of this configuration is the `Unet` with these settings."""
    try:
        check_settings(settings)
        ours = unet_config(settings)
    except ValueError:
        return False
    return with_our_spelling(config, settings, ours) == ours


def with_our_spelling(config: Settings, settings: Settings, ours: Settings) -> Settings:
    """`config` with values replaced by equivalent ones that `ours` uses."""
    channels, kinds = config["block_out_channels"], config["down_block_types"]
    config = config | {
        "dropout": settings["dropout"],
        "num_class_embeds": ours["num_class_embeds"],
        "num_train_timesteps": None,
    }
    attending = {count for count, kind in zip(channels, kinds) if kind == "AttnDownBlock2D"}
    if {*attending, channels[-1]} == {config["attention_head_dim"]}:
        config["attention_head_dim"] = None  # one head
    if config["attn_norm_num_groups"] == config["norm_num_groups"]:
        config["attn_norm_num_groups"] = ours["attn_norm_num_groups"]
    if config["time_embedding_dim"] == 4 * channels[0]:
        config["time_embedding_dim"] = None
    return config
