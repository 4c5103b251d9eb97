"""Conditions: images that an image-conditional model gets as input in addition to x_t.

    condition = make_condition("downscale:4", x_0)       # (B,K,H,W), computed from x_0
    output = model(concatenate_condition(x_t, condition), t)

Super-resolution is the condition "downscale:N" (Saharia et al. 2021, "SR3", which also concatenates
the condition with x_t), colorization is "gray", inpainting "mask" (Saharia et al. 2022, "Palette").

Letters in the shape columns: B images, C channels, K channels of the condition, H and W height and
width.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("downscale:N", "gray", "mask", "edges", "pairs")
LARGEST_FACTOR = 64
# The weights of red, green and blue in the luma (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Sides of the random rectangles of "mask", as fractions of the image's height and width. Their
# centres are uniform over the image, so that a part of a rectangle may lie outside.
RECTANGLE = (0.25, 1.0)


def is_condition(text: str) -> bool:
    """Whether this is one of `KINDS`, with a number from 2 to 64 for N, or "" for none."""
    return text in ("", *KINDS[1:]) or 2 <= factor_of(text) <= LARGEST_FACTOR


def factor_of(kind: str) -> int:
    """The N of "downscale:N", 0 for other conditions."""
    found = re.fullmatch(r"downscale:([0-9]{1,3})", kind)
    return int(found[1]) if found else 0


def condition_channels(kind: str, depth: int, paired: int = 0) -> int:
    """K, for images of `depth` channels. paired: the channels of the inputs, for "pairs"."""
    if factor_of(kind):
        return depth
    return {"": 0, "gray": 1, "edges": 1, "mask": depth + 1, "pairs": paired}[kind]


def check_condition(kind: str, depth: int, height: int, width: int) -> None:
    """Raise ValueError, in one line, if images of this shape cannot have the condition."""
    factor = factor_of(kind)
    if factor and (height % factor or width % factor):
        raise ValueError(
            f"--condition {kind}: the image size {height}x{width} is not divisible by {factor}"
        )
    if kind == "gray" and depth == 1:
        raise ValueError("--condition gray: the images have no colour, choose another condition")


def make_condition(kind: str, x_0: Tensor, mask: Tensor | None = None) -> Tensor:
    """The condition (B,K,H,W) of images x_0 (B,C,H,W), both in [-1, 1], for all kinds except
    "pairs".

    mask (B,1,H,W): for "mask", true where the image is hidden. The condition is then x_0 with 0 in
    place of hidden pixels, and a last channel that is 1 where the image is hidden, -1 elsewhere.
    """
    if factor := factor_of(kind):
        return enlarge(F.avg_pool2d(x_0, factor), factor)
    if kind == "gray":
        return luma(x_0)
    if kind == "edges":
        return edges(x_0)
    assert kind == "mask"
    assert mask is not None
    return torch.cat([x_0.masked_fill(mask, 0), mask.to(x_0.dtype) * 2 - 1], dim=1)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Bicubic interpolation: (B,C,H,W) -> (B,C,factor*H,factor*W), clipped to [-1, 1]."""
    return F.interpolate(x, scale_factor=factor, mode="bicubic").clamp(-1, 1)


def luma(x: Tensor) -> Tensor:
    """The brightness of images in RGB or gray: (B,C,H,W) -> (B,1,H,W)."""
    if x.shape[1] != len(LUMA):
        return x.mean(dim=1, keepdim=True)
    weights = torch.tensor(LUMA, device=x.device, dtype=x.dtype)
    return (x * weights[:, None, None]).sum(dim=1, keepdim=True)


def edges(x: Tensor) -> Tensor:
    """The magnitude of the luma's gradient by Sobel's filter, (B,1,H,W). It is -1 where the image
    is constant, and 1 where the gradient is at least half of that at a straight edge between black
    and white."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    filters = torch.stack([sobel, sobel.T])[:, None].to(x)  # (2,1,3,3)
    padded = F.pad(luma(x), (1, 1, 1, 1), mode="replicate")
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round small differences
        gradient = F.conv2d(padded, filters).norm(dim=1, keepdim=True)
    return (gradient * 4).clamp(0, 2) - 1


def random_masks(
    count: int, height: int, width: int, random: torch.Generator, device: torch.device
) -> Tensor:
    """Masks (count,1,H,W), true in two random rectangles."""
    low, high = RECTANGLE
    numbers = torch.rand(2, 2, 2, count, generator=random, device=device)
    hidden = torch.zeros(count, height, width, dtype=torch.bool, device=device)
    for rectangle in numbers:
        inside = []
        for (share, centre), side in zip(rectangle, (height, width)):
            length = (low + (high - low) * share) * side  # (count,)
            start = centre * side - length / 2
            pixel = torch.arange(side, device=device) + 0.5
            inside.append((pixel > start[:, None]) & (pixel < (start + length)[:, None]))
        rows, columns = inside  # (count,H), (count,W)
        hidden |= rows[:, :, None] & columns[:, None, :]
    return hidden[:, None]


def concatenate_condition(x: Tensor, condition: Tensor | None) -> Tensor:
    """The network's input (B,C+K,H,W): x_t (B,C,H,W), then the condition (B,K,H,W) if any."""
    return x if condition is None else torch.cat([x, condition], dim=1)


def restore_known_pixels(kind: str, x0_hat: Tensor, condition: Tensor | None) -> Tensor:
    """x0_hat (B,C,H,W); with the condition "mask", known pixels replace the predicted ones."""
    if kind != "mask" or condition is None:
        return x0_hat
    known, hidden = condition[:, :-1], condition[:, -1:] > 0
    return torch.where(hidden, x0_hat, known)


def as_picture(condition: Tensor, depth: int) -> Tensor:
    """A condition (B,K,H,W) as an image of `depth` channels."""
    if depth == 1 and condition.shape[1] == len(LUMA):
        return luma(condition)
    if condition.shape[1] >= depth:
        return condition[:, :depth]
    return condition[:, :1].expand(-1, depth, -1, -1)
