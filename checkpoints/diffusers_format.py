"""Our network and schedule in the words of diffusers, there and back: UNet2DModel, DDPMScheduler, and the names of weights.

    unet, scheduler = unet_config(settings), scheduler_config(settings)
    weights = to_diffusers(model.unet.state_dict(), levels=4, blocks=2)      # from_diffusers goes back

`settings` are the `hparams` of a `DiffusionModel`. Nothing of diffusers is imported. Its networks can be what ours cannot, and
ours what its cannot: that is refused, by the name of the setting. Compared with diffusers 0.42.
"""

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import schedules
from Unet import Unet

Settings = dict[str, Any]
VERSION = "0.42.0"  # of diffusers, whose words these are

# ---- weights ---------------------------------------------------------------------------------------------------------

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "embed": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {
    "norm": "group_norm",
    "qkv": "to_qkv",
    "out": "to_out.0",
}  # to_qkv stands for to_q, to_k and to_v
OLD = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # diffusers before 0.15


def parts(levels: int, blocks: int) -> dict[str, str]:
    """Our name of each part of a network -> that of UNet2DModel's; also of parts that a particular one may lack."""
    found = {
        "time.0": "time_embedding.linear_1",
        "time.2": "time_embedding.linear_2",
        "label": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    stages = [("middle1", "mid_block", 0), ("middle2", "mid_block", 1)]
    for side, count, sampler in (
        ("down", blocks, "downsamplers"),
        ("up", blocks + 1, "upsamplers"),
    ):
        for level in range(levels):
            first, theirs = level * (count + 1), f"{side}_blocks.{level}"
            stages += [(f"{side}.{first + i}", theirs, i) for i in range(count)]
            found[f"{side}.{first + count}.conv"] = f"{theirs}.{sampler}.0.conv"
    for ours, theirs, i in stages:
        found |= {f"{ours}.block.{a}": f"{theirs}.resnets.{i}.{b}" for a, b in BLOCK.items()}
        found |= {
            f"{ours}.attention.{a}": f"{theirs}.attentions.{i}.{b}" for a, b in ATTENTION.items()
        }
    return found


def to_diffusers(weights: dict[str, Tensor], levels: int, blocks: int) -> dict[str, Tensor]:
    """The weights of a `Unet` as UNet2DModel names them. What tells the network of augmentation stays behind: images are
    sampled without."""
    known, found = parts(levels, blocks), {}
    for name, value in weights.items():
        part, kind = name.rsplit(".", 1)
        if part.endswith(".qkv"):
            found |= {
                f"{known[part][:-3]}{letter}.{kind}": third.clone()
                for letter, third in zip("qkv", value.chunk(3))
            }
        elif part != "augmentation":
            found[f"{known[part]}.{kind}"] = value
    return found


def from_diffusers(weights: dict[str, Tensor], levels: int, blocks: int) -> dict[str, Tensor]:
    """`to_diffusers`, back, also from the names that diffusers once had; a name that it does not know stays what it is."""
    known, found = {theirs: ours for ours, theirs in parts(levels, blocks).items()}, {}
    new = {
        re.sub(
            r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.",
            lambda m: f"{m[1]}.{OLD[m[2]]}.",
            name,
        ): value
        for name, value in weights.items()
    }
    for name, value in new.items():
        part, _, kind = name.rpartition(".")
        if part.endswith(".to_q") and (whole := part[:-1] + "qkv") in known:
            found[f"{known[whole]}.{kind}"] = torch.cat(
                [new[f"{part[:-1]}{letter}.{kind}"] for letter in "qkv"]
            )
        elif not (part.endswith((".to_k", ".to_v")) and part[:-1] + "q." + kind in new):
            found[f"{known.get(part, part)}.{kind}"] = value
    return found


# ---- the network -----------------------------------------------------------------------------------------------------

UNET: Settings = {  # what UNet2DModel takes where its configuration is silent
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


def unet_config(settings: Settings) -> Settings:
    """The configuration of the UNet2DModel that is this network. Raises ValueError where there is none."""
    network = {name: settings[name] for name in inspect.signature(Unet).parameters}
    with torch.device("meta"):  # shapes without memory
        groups = sorted(
            {
                module.num_groups
                for module in Unet(**network).modules()
                if isinstance(module, nn.GroupNorm)
            }
        )
    if network["patch"] > 1:
        raise ValueError(
            f"UNet2DModel cannot fold patches of {network['patch']}x{network['patch']} pixels into channels: "
            "choose safetensors or ONNX"
        )
    if len(groups) > 1:
        raise ValueError(
            f"UNet2DModel has one norm_num_groups for all layers, and these have {', '.join(map(str, groups))} "
            "(where every level's channels are a multiple of 128, all have 32): choose safetensors or ONNX"
        )
    attends = [
        network["size"] // 2**i in network["attention"] for i in range(len(network["mults"]))
    ]
    return UNET | {
        "sample_size": network["size"],
        "in_channels": network["depth"],
        "out_channels": network["depth"] * network["outputs"],
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "block_out_channels": tuple(network["width"] * mult for mult in network["mults"]),
        "down_block_types": tuple(
            "AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends
        ),
        "up_block_types": tuple(
            "AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)
        ),
        "layers_per_block": network["blocks"],
        "downsample_padding": 0,
        "dropout": network["dropout"],
        "attention_head_dim": None,
        "norm_num_groups": groups[0],
        "norm_eps": 1e-6,
        "resnet_time_scale_shift": "scale_shift" if network["film"] else "default",
        "attn_norm_num_groups": groups[0]
        if network["film"]
        else None,  # None would leave the middle's attention without
        "num_class_embeds": network["classes"] + 1 if network["classes"] else None,
    }


def unet_settings(
    config: Settings, class_names: tuple[str, ...], check: Callable[[Settings], None]
) -> Settings:
    """The arguments of `Unet` for a UNet2DModel's configuration, and "class_names": these, if the network has a label for each and one
    more that means none; else numbers, for as many labels as it has. `check` is `Checkpoint.check_settings`. Raises ValueError, with
    the setting's name, where it is another network than a `Unet` can be."""
    config = UNET | {
        name: value
        for name, value in config.items()
        if name in UNET or (name[:1] != "_" and value is not None)
    }
    size, channels, kinds, labels = (
        config[name]
        for name in ("sample_size", "block_out_channels", "down_block_types", "num_class_embeds")
    )
    size = size[0] if isinstance(size, tuple) and len(size) == 2 and size[0] == size[1] else size
    if type(size) is not int or size < 1:
        raise ValueError(f"sample_size must be a whole number, not {short(size)}")
    if (
        not isinstance(channels, tuple)
        or not 1 <= len(channels) <= 8
        or {*map(type, channels)} != {int}
        or min(channels) < 1
    ):
        raise ValueError(f"block_out_channels must be 1 to 8 whole numbers, not {short(channels)}")
    if not isinstance(kinds, tuple) or len(kinds) != len(channels):
        raise ValueError(f"down_block_types must be {len(channels)}, as many as block_out_channels")
    if labels is not None and (type(labels) is not int or not 1 <= labels <= 100_000):
        raise ValueError(
            f"num_class_embeds must be a whole number from 1 to 100000, not {short(labels)}"
        )
    if labels and len(class_names) != labels - 1:
        class_names = tuple(map(str, range(labels)))
    settings = {
        "depth": config["in_channels"],
        "width": channels[0],
        "mults": tuple(c // channels[0] for c in channels),
        "attention": tuple(
            size // 2**i for i, kind in enumerate(kinds) if kind == "AttnDownBlock2D"
        ),
        "blocks": config["layers_per_block"],
        "dropout": real(config["dropout"]),
        "size": size,
        "patch": 1,
        "film": config["resnet_time_scale_shift"] == "scale_shift",
        "classes": len(class_names) if labels else 0,
        "outputs": 1 if config["out_channels"] == config["in_channels"] else 2,
        "augmentations": 0,
        "class_names": class_names,
    }
    check(settings)
    ours = unet_config(settings)
    config |= {
        "sample_size": size,
        "dropout": settings["dropout"],
        "num_class_embeds": ours["num_class_embeds"],
        "num_train_timesteps": None,
    }
    attending = {
        channels[-1],
        *(c for c, kind in zip(channels, kinds) if kind == "AttnDownBlock2D"),
    }
    if attending == {config["attention_head_dim"]}:
        config["attention_head_dim"] = None  # one head, in other words
    if config["attn_norm_num_groups"] == config["norm_num_groups"]:
        config["attn_norm_num_groups"] = ours["attn_norm_num_groups"]
    if config["time_embedding_dim"] == 4 * channels[0]:
        config["time_embedding_dim"] = None
    for name, value in config.items():
        if name not in ours or value != ours[name]:
            raise ValueError(
                f"{name} is {short(value)}, "
                + (
                    f"where the networks of this project have {short(ours[name])}"
                    if name in ours
                    else "which the networks of this project do not know"
                )
            )
    return settings


def short(value: Any) -> str:
    """As JSON has it, of bearable length."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def real(value: Any) -> Any:
    """A number of JSON as a float; anything else as it is."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value


# ---- the schedule ----------------------------------------------------------------------------------------------------

SCHEDULER: Settings = {  # what DDPMScheduler takes where its configuration is silent
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
SCHEDULES = {
    "linear": "linear",
    "cosine": "squaredcos_cap_v2",
}  # the same numbers; sigmoid is another there
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned",
}


def scheduler_config(settings: Settings) -> Settings:
    """The configuration of the DDPMScheduler with this schedule, parameterization and variance. Fewer steps than T are spread evenly
    from T to 1, with one more to 0 ("linspace"): where the last step is longer, it adds noise to it."""
    T, table = settings["T"], settings["betas"]
    if not table and settings["schedule"] not in SCHEDULES:
        table = schedules.betas(settings["schedule"], T).tolist()
    return SCHEDULER | {
        "num_train_timesteps": T,
        "beta_start": settings["beta_small"],
        "beta_end": settings["beta_large"],
        "beta_schedule": SCHEDULES.get(settings["schedule"], "linear"),
        "trained_betas": tuple(table) or None,
        "variance_type": {
            "large": "fixed_large",
            "small": "fixed_small",
            "learned": "learned_range",
        }[settings["variance"]],
        "prediction_type": PREDICTIONS[settings["parameterization"]],
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": settings["zero_terminal_snr"],
    }


def scheduler_settings(config: Settings, check: Callable[[Settings], None]) -> Settings:
    """The arguments of `DiffusionModel` for the configuration of a DDPMScheduler, or of a DDIMScheduler, whose variance is the small
    one. How many steps are taken, and which, is not a model's matter. Raises ValueError, with the setting's name."""
    kind, config = config.get("_class_name"), SCHEDULER | config
    choices = {
        "beta_schedule": [*SCHEDULES.values(), "scaled_linear"],
        "prediction_type": [*PREDICTIONS.values()],
        "variance_type": [*VARIANCES],
        "thresholding": [False],
        "clip_sample": [True],
        "clip_sample_range": [1.0],
    }
    for name, known in ({"_class_name": ["DDPMScheduler", "DDIMScheduler"]} | choices).items():
        if (value := kind if name == "_class_name" else config[name]) not in known:
            raise ValueError(
                f"{name} is {short(value)}, where this project has {' or '.join(map(short, known))}"
            )
    settings: Settings = {
        "T": config["num_train_timesteps"],
        "beta_small": real(config["beta_start"]),
        "beta_large": real(config["beta_end"]),
        "schedule": {theirs: ours for ours, theirs in SCHEDULES.items()}.get(
            config["beta_schedule"], "linear"
        ),
        "betas": tuple(map(real, config["trained_betas"] or ())),
        "zero_terminal_snr": config["rescale_betas_zero_snr"],
        "parameterization": {theirs: ours for ours, theirs in PREDICTIONS.items()}[
            config["prediction_type"]
        ],
        "variance": VARIANCES[config["variance_type"]],
    }
    check(settings)
    if config["beta_schedule"] == "scaled_linear" and not settings["betas"]:
        table = (
            np.linspace(settings["beta_small"] ** 0.5, settings["beta_large"] ** 0.5, settings["T"])
            ** 2
        )
        settings["betas"] = tuple(table.tolist())
    return settings
