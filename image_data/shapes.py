"""The built-in dataset: generated images of a coloured shape on a darker background.

    images, labels = draw(20_000, 32, seed=0)    # uint8 (20000,3,32,32), indices of KINDS (20000,)

Letters in the shape columns: N images, n images of a chunk, H and W height and width.
"""

import numpy as np
import torch
from torch import Tensor

from runtime.image_size import Size, height_and_width
from runtime.randomness import Purpose

KINDS = ("circle", "triangle", "square", "pentagon", "star")
CIRCLE, STAR = KINDS.index("circle"), KINDS.index("star")
CORNERS = (3, 3, 4, 5, 5)  # of each kind; the circle's number is not used
UPRIGHT = np.array([0, -90, -45, -90, -90]) * np.pi / 180  # the angle of a corner of each kind
TILT = 0.3  # radians, from the largest tilt to the left to the largest one to the right
CHUNK = 1000  # images drawn at once, to limit the memory


def draw(count: int, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` images of one shape each: uint8 (N,3,H,W), and their kinds (N,).

    Image i is a function of (seed, i). All kinds are drawn in the same way: the distance of the
    edge from the centre is a function of the angle. The shapes stand upright and near the middle:
    a short training does not learn shapes that are rotated by any angle.
    """
    generators = (np.random.default_rng((seed, Purpose.SHAPE, i)) for i in range(count))
    u = np.stack([random.random(10) for random in generators]).astype(np.float32)  # (N,10)
    kind = (u[:, 0] * len(KINDS)).astype(np.int64)  # (N,)
    H, W = height_and_width(size)
    extent = np.array([W, H], np.float32) / min(H, W)  # (2,)  1 is the image's smaller side
    radius = 0.25 + 0.12 * u[:, 1]  # (N,)  in units of that side, like the centre
    room = extent - 2 * radius[:, None]  # (N,2)  in which the whole shape is in the image
    centre = extent / 2 + 0.6 * room * (u[:, 2:4] - 0.5)  # (N,2)
    rotation = UPRIGHT[kind] + TILT * (u[:, 1] * 7919 % 1 - 0.5)  # (N,)
    colour = 0.35 + 0.65 * u[:, 4:7]  # (N,3)
    brightest = (u[:, 4] * 7919 % 3).astype(int)  # (N,)  the channel that has its full value
    colour[np.arange(count), brightest] = 1.0
    background = 0.3 * u[:, 7:10]  # (N,3)

    images = np.empty((count, 3, H, W), np.uint8)
    for chunk in np.array_split(np.arange(count), -(-count // CHUNK)):
        cover = coverage(kind[chunk], radius[chunk], centre[chunk], rotation[chunk], size)[:, None]
        inside, outside = colour[chunk, :, None, None], background[chunk, :, None, None]
        images[chunk] = ((inside * cover + outside * (1 - cover)) * 255).round()
    return torch.from_numpy(images), torch.from_numpy(kind)


def coverage(
    kind: np.ndarray, radius: np.ndarray, centre: np.ndarray, rotation: np.ndarray, size: Size
) -> np.ndarray:
    """The fraction of every pixel that a shape covers, (n,H,W) in [0, 1].

    Takes kind, radius and rotation (n,) and centre (n,2).
    """
    H, W = height_and_width(size)
    side = min(H, W)
    across = (np.arange(W, dtype=np.float32) + 0.5) / side
    down = (np.arange(H, dtype=np.float32) + 0.5) / side
    x = across[None, None, :] - centre[:, 0, None, None]  # (n,1,W)
    y = down[None, :, None] - centre[:, 1, None, None]  # (n,H,1)
    angle = np.arctan2(y, x) - rotation[:, None, None]  # (n,H,W)
    kind = kind[:, None, None]
    corners = np.choose(kind, CORNERS).astype(np.float32)
    # the angle from the nearest corner
    phi = np.abs((angle + np.pi / corners) % (2 * np.pi / corners) - np.pi / corners)
    polygon = np.cos(np.pi / corners) / np.cos(np.pi / corners - phi)
    # in units of the radius, the outer corners are at 1.1 and the inner ones at half of that
    star = 1.1 * 0.5 * np.sin(np.pi / 5) / (0.5 * np.sin(np.pi / 5 - phi) + np.sin(phi))
    edge = np.where(kind == CIRCLE, 0.85, np.where(kind == STAR, star, polygon))
    edge = radius[:, None, None] * edge
    return ((edge - np.hypot(x, y)) * side + 0.5).clip(0, 1)
