"""The configuration of diffusers' UNet2DModel, as a setting of a model in JSON.

    text = to_json(config)                  # the setting "unet2d"
    config = from_json(text)                # checked
    config = fitted(config, network)        # for other images, classes or outputs

A configuration is not trusted. Types and ranges are checked here; diffusers decides whether a
network can be built from it.
"""

import json
from typing import Any

from checkpoints.json_values import parse_object, shorten

Settings = dict[str, Any]

# the defaults of UNet2DModel
DEFAULTS: Settings = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# smallest and largest value of whole numbers
WHOLE = {
    "sample_size": (1, 1024),
    "in_channels": (1, 16),
    "out_channels": (1, 32),
    "time_embedding_dim": (1, 16384),
    "layers_per_block": (1, 16),
    "downsample_padding": (0, 4),
    "attention_head_dim": (1, 8192),
    "norm_num_groups": (1, 1024),
    "attn_norm_num_groups": (1, 1024),
    "num_class_embeds": (1, 100_001),
    "num_train_timesteps": (1, 100_000),
}
# smallest and largest value of numbers
REAL = {
    "freq_shift": (0, 1),
    "mid_block_scale_factor": (1e-3, 1e3),
    "dropout": (0, 0.999),
    "norm_eps": (1e-12, 1),
}
MAY_BE_NONE = (
    "time_embedding_dim",
    "attention_head_dim",
    "attn_norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
)
# Two options of diffusers are not supported: the Fourier time embedding, which takes a noise level
# instead of t and is not finite at t = 0, and class embeddings that do not take a class index.
CHOICES: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False, True),
    "time_embedding_type": ("positional", "learned"),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (False, True),
    "class_embed_type": (None,),
}
# The kinds of blocks, one for each entry of block_out_channels.
BLOCKS = {
    "down_block_types": (
        "DownBlock2D",
        "AttnDownBlock2D",
        "ResnetDownsampleBlock2D",
        "SkipDownBlock2D",
        "AttnSkipDownBlock2D",
    ),
    "up_block_types": (
        "UpBlock2D",
        "AttnUpBlock2D",
        "ResnetUpsampleBlock2D",
        "SkipUpBlock2D",
        "AttnSkipUpBlock2D",
    ),
}


def to_json(config: Settings) -> str:
    return json.dumps(config, sort_keys=True)


def from_json(text: str) -> Settings:
    """Parse and check a configuration. Raises ValueError if it is not a valid one."""
    config = parse_object(text, "unet2d")
    check_config(config)
    return config


def check_config(config: Settings) -> None:
    """Check names, types and ranges of a complete configuration. Raises ValueError with a one-line
    message about the first wrong setting."""
    for name in [*config, *DEFAULTS]:
        if name not in DEFAULTS:
            raise ValueError(
                f"{name} is {shorten(config[name])}, which UNet2DModel does not support"
            )
        if name not in config:
            raise ValueError(f"{name} is missing")
    check_levels(config["block_out_channels"], config["down_block_types"])
    for name, value in config.items():
        if value is None and name in MAY_BE_NONE:
            continue
        good, expected = check_value(name, value, len(config["block_out_channels"]))
        if not good:
            raise ValueError(f"{name} is {shorten(value)}, but this project supports {expected}")
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise ValueError(
            f"out_channels is {config['out_channels']}, but this project supports in_channels, "
            f"{config['in_channels']}, or twice that"
        )
    first = config["block_out_channels"][0]
    if first < 4:
        raise ValueError(
            f"block_out_channels begins with {first}, but this project needs at least 4"
        )


def check_value(name: str, value: Any, levels: int) -> tuple[bool, str]:
    """Whether this setting may have this value, and a description of the valid values."""
    if name in WHOLE:
        low, high = WHOLE[name]
        pair = name == "sample_size" and isinstance(value, tuple) and len(value) == 2
        numbers = value if pair else (value,)
        good = all(type(number) is int and low <= number <= high for number in numbers)
        return good, f"a whole number from {low} to {high}"
    if name in REAL:
        low, high = REAL[name]
        good = type(value) in (int, float) and low <= value <= high
        return good, f"a number from {low:g} to {high:g}"
    if name in BLOCKS:
        good = isinstance(value, tuple) and len(value) == levels
        good = good and all(kind in BLOCKS[name] for kind in value)
        return good, f"{levels} of {', '.join(BLOCKS[name])}"
    if name in CHOICES:
        choices = CHOICES[name]
        good = any(type(value) is type(choice) and value == choice for choice in choices)
        return good, " or ".join(map(shorten, choices))
    return True, ""  # block_out_channels


def check_levels(channels: Any, kinds: Any) -> None:
    """Check types and lengths of block_out_channels and down_block_types."""
    is_tuple = isinstance(channels, tuple) and 1 <= len(channels) <= 8
    if not is_tuple or any(type(count) is not int or not 1 <= count <= 8192 for count in channels):
        raise ValueError(
            "block_out_channels must be 1 to 8 whole numbers from 1 to 8192, "
            f"not {shorten(channels)}"
        )
    if not isinstance(kinds, tuple) or len(kinds) != len(channels):
        raise ValueError(
            f"down_block_types must have {len(channels)} entries, as many as block_out_channels"
        )


def fitted(config: Settings, network: Settings) -> Settings:
    """The configuration with image size, channels, classes and dropout taken from these arguments
    of `Unet`. The last class means "no class"."""
    return config | {
        "sample_size": network["size"],
        "in_channels": network["depth"],
        "out_channels": network["depth"] * network["outputs"],
        "num_class_embeds": network["classes"] + 1 if network["classes"] else None,
        "dropout": network["dropout"],
    }
