"""Augmentation that does not leak into samples: the network is given a label of what was done.

    x, label = augmented(x, draw(128, 0.12, generator))       # (B,C,H,W), (B,9)

At sampling the label is 0, which means "nothing was done", and the network gives images as they
are in the data. Karras et al. 2022, "Elucidating the design space of diffusion-based generative
models", appendix F.2; mirroring, scaling, turning, stretching and shifting, each with the given
probability, in the amounts given there.

Letters in the shape columns: B batch, C channels, H and W height and width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9
# Standard deviations: of log2 of the size, of log2 of the stretch, of the shift as a fraction of
# the side.
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125


def draw(count: int, probability: float, random: torch.Generator) -> Tensor:
    """What is done to each of `count` images, (B,8): mirrored left-right, upside down (0 or 1),
    log2 of the size, angle (radians), log2 of the stretch, its direction (radians), shifted right,
    shifted down (shares of the side); 0 where not."""
    applied = torch.rand(6, count, generator=random, device=random.device) < probability  # (6,B)
    coin = (torch.rand(2, count, generator=random, device=random.device) < 0.5).float()  # (2,B)
    size, stretch, right, down = torch.randn(4, count, generator=random, device=random.device)
    turn, direction = (
        torch.rand(2, count, generator=random, device=random.device) * 2 - 1
    ) * torch.pi
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


def augmented(x: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
    """Images x (B,C,H,W) with what `draw` gave (B,8) done to them, (B,C,H,W), and its label for
    the network (B,9). What comes in from outside is mirrored at the edge. The label has twice the
    direction, so that a stretch along and the same one across, which the angle alone confuses,
    differ."""
    mirror, flip, size, turn, stretch, direction, right, down = done.unbind(1)  # 8 x (B,)

    def turned(angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(
            -1, 2, 2
        )

    def scaled(across: Tensor, along: Tensor) -> Tensor:
        return torch.diag_embed(torch.stack([across, along], dim=1))  # (B,2,2)

    with torch.autocast(x.device.type, enabled=False):  # products in bf16 would blur
        back = (
            scaled(1 - 2 * mirror, 1 - 2 * flip)
            @ scaled(2**-size, 2**-size)
            @ turned(-turn)
            @ turned(direction)
            @ scaled(2**-stretch, 2**stretch)
            @ turned(-direction)
        )  # (B,2,2)  to where a pixel was
        shift = -(
            back @ (2 * torch.stack([right, down], dim=1))[:, :, None]
        )  # (B,2,1); the side is 2 long
        grid = F.affine_grid(torch.cat([back, shift], dim=2), list(x.shape), align_corners=False)
        moved = F.grid_sample(
            x, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        ).clamp(-1, 1)
    untouched = (done == 0).all(dim=1)[:, None, None, None]
    label = torch.stack(
        [
            mirror,
            flip,
            size / SCALE,
            turn.cos() - 1,
            turn.sin(),
            stretch / STRETCH * (2 * direction).cos(),
            stretch / STRETCH * (2 * direction).sin(),
            right / SHIFT,
            down / SHIFT,
        ],
        dim=1,
    )
    return torch.where(untouched, x, moved), label
