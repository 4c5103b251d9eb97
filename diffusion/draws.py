"""The random numbers of a training or validation batch.

    draws = Draws(x_0, (seed, Purpose.TRAIN, step))
    t, eps = draws.times("uniform", ratio), draws.normal(depth=3)

They are drawn for the whole batch of a step in a fixed order, and each process and each micro-batch
takes its own rows. So the numbers depend on the global batch size, but not on how the batch is
divided.

Letters in the shape columns: B images in this part of the batch, C channels, K channels of a
condition, L length of an augmentation label, H and W height and width, T the number of steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.augment import augmented, draw
from diffusion.conditions import make_condition, random_masks
from diffusion.objective import draw_times
from runtime.randomness import Purpose, generator


class Share(NamedTuple):
    """Part number `part` of a step's batch, which is divided into `parts` equal parts.

    attempt: the number of restarts after divergence. Each restart uses different noise.
    """

    part: int = 0
    parts: int = 1
    attempt: int = 0


class Draws:
    """The random numbers of one share of a batch, whose images are x (B,C,H,W). They depend on
    `key`, on the share and on the size of the whole batch."""

    def __init__(self, x: Tensor, key: tuple[int, ...], share: Share = Share()):  # noqa: B008
        self.shape, self.device = x.shape, x.device
        self.random = generator(x.device, *key)
        self.count = share.parts * len(x)
        self.rows = slice(share.part * len(x), (share.part + 1) * len(x))

    def times(self, kind: str, ratio: Tensor) -> Tensor:
        """t (B,) in 1..T from `draw_times`. ratio (T,): sigma / signal at t = 1 .. T."""
        return draw_times(kind, self.count, ratio, self.random)[self.rows]

    def normal(self, depth: int) -> Tensor:
        """Standard normal noise for images of `depth` channels, (B,depth,H,W)."""
        shape = (self.count, depth, *self.shape[2:])
        return torch.randn(shape, generator=self.random, device=self.device)[self.rows]

    def chance(self, probability: float) -> Tensor:
        """A mask (B,), true with this probability."""
        uniform = torch.rand(self.count, generator=self.random, device=self.device)
        return uniform[self.rows] < probability

    def drop_labels(self, y: Tensor | None, probability: float, null: int) -> Tensor | None:
        """Labels y (B,), each replaced by `null` with this probability; None if there are no
        labels."""
        return None if y is None else torch.where(self.chance(probability), null, y)

    def augment(self, x: Tensor, probability: float) -> tuple[Tensor, Tensor | None]:
        """Augmented images (B,C,H,W) and their augmentation labels (B,L), see `augmented`; x and
        None if the probability is 0."""
        if not probability:
            return x, None
        return augmented(x, draw(self.count, probability, self.random)[self.rows])

    def condition(self, x: Tensor, kind: str, depth: int) -> tuple[Tensor, Tensor | None]:
        """x_0 (B,C,H,W) and its condition (B,K,H,W), see `conditions`, or x_0 and None if kind
        is "".

        depth: C. For "pairs", x has the channels of x_0 and then those of the condition.
        """
        if kind in ("", "pairs"):
            return x[:, :depth], x[:, depth:] if kind else None
        mask = None
        if kind == "mask":
            height, width = x.shape[2:]
            masks = random_masks(self.count, height, width, self.random, self.device)
            mask = masks[self.rows]
        return x, make_condition(kind, x, mask)


def unseen_conditions(x: Tensor, kind: str, depth: int, seed: int) -> tuple[Tensor, Tensor]:
    """x_0 (N,C,H,W) and the conditions (N,K,H,W) of N unseen images, see `Draws.condition`. The
    mask of image i depends on (seed, i) alone.

    x (N,C,H,W), or (N,C+K,H,W) for "pairs". depth: C.
    """
    originals, conditions = [], []
    for i, image in enumerate(x.split(1)):
        draws = Draws(image, (seed, Purpose.CONDITION, i))
        original, condition = draws.condition(image, kind, depth)
        assert condition is not None
        originals.append(original)
        conditions.append(condition)
    return torch.cat(originals), torch.cat(conditions)


def split_batch(batch: Tensor | tuple, classes: int) -> tuple[Tensor, Tensor | None, Share]:
    """Split a batch, which is x_0, (x_0, labels) or (x_0, labels, share), into x_0 (B,C,H,W),
    labels (B,) and share. The labels are None if the batch has none or `classes` is 0."""
    if isinstance(batch, Tensor):
        return batch, None, Share()
    x_0, y, *rest = batch
    return x_0, y if classes else None, rest[0] if rest else Share()
