"""Non-leaking augmentation: the network is conditioned on how each image was augmented.

    x, label = augmented(x, draw(128, 0.12, generator))       # (B,C,H,W), (B,9)

In sampling the label is 0, "not augmented", so the samples look like the original data. Images are
mirrored, scaled, rotated, stretched and shifted, each with the given probability (mirrored: half of
it) and by the amounts in Karras et al. 2022, "Elucidating the design space of diffusion-based
generative models", appendix F.2.

Letters in the shape columns: B batch, C channels, H and W height and width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LABEL_LENGTH = 9
# Standard deviations of: log2 of the scale, log2 of the stretch, the shift as a fraction of the
# side.
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125


class Amounts(NamedTuple):
    """The columns of `draw`, each (B,)."""

    mirror: Tensor  # horizontal flip, 0 or 1
    flip: Tensor  # vertical flip, 0 or 1
    size: Tensor  # log2 of the scale
    turn: Tensor  # rotation in radians
    stretch: Tensor  # log2
    direction: Tensor  # of the stretch, in radians
    right: Tensor  # shift to the right as a fraction of the width
    down: Tensor  # shift down as a fraction of the height


def draw(count: int, probability: float, random: torch.Generator) -> Tensor:
    """Draw the amounts of all augmentations for `count` images, (B,8). Each kind is applied with
    this `probability`, flips half as often. The columns are those of `Amounts`."""
    applied = torch.rand(6, count, generator=random, device=random.device) < probability  # (6,B)
    coin = (torch.rand(2, count, generator=random, device=random.device) < 0.5).float()  # (2,B)
    size, stretch, right, down = torch.randn(4, count, generator=random, device=random.device)
    angles = torch.rand(2, count, generator=random, device=random.device) * 2 - 1  # (2,B)
    turn, direction = angles * torch.pi
    columns = [
        coin[0] * applied[0],
        coin[1] * applied[1],
        SCALE * size * applied[2],
        turn * applied[3],
        STRETCH * stretch * applied[4],
        direction * applied[4],
        SHIFT * right * applied[5],
        SHIFT * down * applied[5],
    ]
    return torch.stack(columns, dim=1)  # (B,8)


def augmented(x: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Augment images x (B,C,H,W) by the amounts (B,8) from `draw`. Returns the images (B,C,H,W) and
    the labels for the network (B,9). Areas outside the image are filled by reflection."""
    with torch.autocast(x.device.type, enabled=False):  # products in bf16 would blur
        transform = to_original_position(amounts, x.shape[2], x.shape[3])
        grid = F.affine_grid(transform, list(x.shape), align_corners=False)
        moved = F.grid_sample(
            x, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        ).clamp(-1, 1)
    untouched = (amounts == 0).all(dim=1)[:, None, None, None]
    return torch.where(untouched, x, moved), label_of(amounts)


def to_original_position(amounts: Tensor, height: int, width: int) -> Tensor:
    """The affine maps (B,2,3) from the new position of a pixel to its original one, in coordinates
    from -1 to 1 over the width and over the height."""
    a = Amounts(*amounts.unbind(1))
    linear = (
        scale(1 - 2 * a.mirror, 1 - 2 * a.flip)
        @ scale(2**-a.size, 2**-a.size)
        @ rotation(-a.turn)
        @ rotation(a.direction)
        @ scale(2**-a.stretch, 2**a.stretch)
        @ rotation(-a.direction)
    )  # (B,2,2)  in pixels
    linear[:, 0, 1] *= height / width
    linear[:, 1, 0] *= width / height
    shift = -(linear @ (2 * torch.stack([a.right, a.down], dim=1))[:, :, None])  # (B,2,1)
    return torch.cat([linear, shift], dim=2)


def rotation(angle: Tensor) -> Tensor:
    """Rotation matrices: (B,) in radians -> (B,2,2)."""
    entries = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
    return torch.stack(entries, dim=1).view(-1, 2, 2)


def scale(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Scaling matrices: 2 x (B,) -> (B,2,2)."""
    return torch.diag_embed(torch.stack([horizontal, vertical], dim=1))


def label_of(amounts: Tensor) -> Tensor:
    """The labels for the network: (B,8) -> (B,9), all 0 for an image that was not augmented. The
    angle of the stretch is doubled, because opposite directions are the same stretch."""
    a = Amounts(*amounts.unbind(1))
    columns = [
        a.mirror,
        a.flip,
        a.size / SCALE,
        a.turn.cos() - 1,
        a.turn.sin(),
        a.stretch / STRETCH * (2 * a.direction).cos(),
        a.stretch / STRETCH * (2 * a.direction).sin(),
        a.right / SHIFT,
        a.down / SHIFT,
    ]
    return torch.stack(columns, dim=1)
