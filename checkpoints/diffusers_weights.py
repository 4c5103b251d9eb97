"""Rename a network's weights to their names in diffusers' UNet2DModel, and back.

weights = to_diffusers(model.unet.state_dict(), levels=4, blocks=2)
weights = from_diffusers(weights, levels=4, blocks=2)
"""

import re

import torch
from torch import Tensor

# our names within a block -> those of diffusers
BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "embed": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
# to_qkv stands for the three layers to_q, to_k and to_v
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "out": "to_out.0"}
# names before diffusers 0.15 -> later names
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def layer_names(levels: int, blocks: int) -> dict[str, str]:
    """Map our name of each layer to that in UNet2DModel, including layers that may be missing."""
    names = {
        "time.0": "time_embedding.linear_1",
        "time.2": "time_embedding.linear_2",
        "label": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    # (our stage, their block, the stage's index in it)
    stages = [("middle1", "mid_block", 0), ("middle2", "mid_block", 1)]
    sides = (("down", blocks, "downsamplers"), ("up", blocks + 1, "upsamplers"))
    for side, count, sampler in sides:
        for level in range(levels):
            first, theirs = level * (count + 1), f"{side}_blocks.{level}"
            stages += [(f"{side}.{first + i}", theirs, i) for i in range(count)]
            names[f"{side}.{first + count}.conv"] = f"{theirs}.{sampler}.0.conv"
    for ours, theirs, i in stages:
        for a, b in BLOCK.items():
            names[f"{ours}.block.{a}"] = f"{theirs}.resnets.{i}.{b}"
        for a, b in ATTENTION.items():
            names[f"{ours}.attention.{a}"] = f"{theirs}.attentions.{i}.{b}"
    return names


def to_diffusers(weights: dict[str, Tensor], levels: int, blocks: int) -> dict[str, Tensor]:
    """The weights of a `Unet` by their names in UNet2DModel.

    The embedding of the augmentation is left out: images are sampled without it.
    """
    names, renamed = layer_names(levels, blocks), {}
    for name, value in weights.items():
        layer, kind = name.rsplit(".", 1)
        if layer.endswith(".qkv"):
            prefix = names[layer].removesuffix("qkv")
            for letter, third in zip("qkv", value.chunk(3)):
                renamed[f"{prefix}{letter}.{kind}"] = third.clone()
        elif layer != "augmentation":
            renamed[f"{names[layer]}.{kind}"] = value
    return renamed


def from_diffusers(weights: dict[str, Tensor], levels: int, blocks: int) -> dict[str, Tensor]:
    """The weights of a UNet2DModel by their names in a `Unet`.

    Names from before diffusers 0.15 are accepted as well. Unknown names are not changed.
    """
    names = {theirs: ours for ours, theirs in layer_names(levels, blocks).items()}
    weights = {to_current_name(name): value for name, value in weights.items()}
    renamed = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        prefix = layer[:-1]  # of to_q, to_k and to_v
        if layer.endswith(".to_q") and f"{prefix}qkv" in names:
            thirds = [weights[f"{prefix}{letter}.{kind}"] for letter in "qkv"]
            renamed[f"{names[f'{prefix}qkv']}.{kind}"] = torch.cat(thirds)
        elif not (layer.endswith((".to_k", ".to_v")) and f"{prefix}q.{kind}" in weights):
            renamed[f"{names.get(layer, layer)}.{kind}"] = value
    return renamed


def to_current_name(name: str) -> str:
    """The name that a weight of UNet2DModel has since diffusers 0.15."""
    return re.sub(
        r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.",
        lambda match: f"{match[1]}.{OLD_ATTENTION[match[2]]}.",
        name,
    )
