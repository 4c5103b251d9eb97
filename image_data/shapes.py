"""The built-in dataset: one coloured shape on a darker ground, drawn, so that nothing need be downloaded.

    images, labels = draw(20_000, 32, seed=0)                        # uint8 (20000,3,32,32), numbers of KINDS (20000,)

Letters in the shape columns: N images, n of them at once.
"""

import numpy as np
import torch
from torch import Tensor

from runtime.randomness import Purpose

KINDS = ("circle", "triangle", "square", "pentagon", "star")


def draw(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` images of one coloured shape on a darker ground: uint8 (N,3,size,size) and its kind (N,).

    Image i depends on (seed, i) alone. The edge is a function rho of the angle, so that all kinds are drawn at once.
    """
    u = np.stack(
        [np.random.default_rng((seed, Purpose.SHAPE, i)).random(10) for i in range(count)]
    ).astype(np.float32)  # (N,10)
    kind = (u[:, 0] * len(KINDS)).astype(np.int64)  # (N,)
    radius = 0.18 + 0.14 * u[:, 1]  # of the image's side
    place = radius[:, None] + (1 - 2 * radius[:, None]) * u[:, 2:4]  # (N,2)  all of it inside
    ink, ground = 0.35 + 0.65 * u[:, 4:7], 0.3 * u[:, 7:10]  # (N,3)
    ink[np.arange(count), (u[:, 4] * 7919 % 3).astype(int)] = (
        1.0  # one channel full: a bright colour
    )
    turn = 2 * np.pi * (u[:, 1] * 7919 % 1)
    images = np.empty((count, 3, size, size), np.uint8)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    for part in np.array_split(
        np.arange(count), -(-count // 1000)
    ):  # a thousand at a time bounds the memory
        x, y = (
            axis[None, None, :] - place[part, 0, None, None],
            axis[None, :, None] - place[part, 1, None, None],
        )
        angle = np.arctan2(y, x) - turn[part, None, None]  # (n,size,size)
        k = kind[part, None, None]
        n = np.choose(k, [3, 3, 4, 5, 5]).astype(np.float32)  # corners
        phi = np.abs(
            (angle + np.pi / n) % (2 * np.pi / n) - np.pi / n
        )  # angle from the nearest corner
        polygon = np.cos(np.pi / n) / np.cos(np.pi / n - phi)
        star = 0.4 * np.sin(np.pi / 5) / (0.4 * np.sin(np.pi / 5 - phi) + np.sin(phi))
        rho = radius[part, None, None] * np.where(k == 0, 0.85, np.where(k == 4, star, polygon))
        cover = ((rho - np.hypot(x, y)) * size + 0.5).clip(0, 1)[:, None]  # (n,1,size,size)
        colour = ink[part, :, None, None] * cover + ground[part, :, None, None] * (1 - cover)
        images[part] = (colour * 255).round()
    return torch.from_numpy(images), torch.from_numpy(kind)
