"""The noise from which an image is sampled, the same for any batch size and number of processes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runtime.randomness import Purpose, generator


class Noise:
    """Standard normal noise in which image i has a generator of its own, seeded by (seed, i).

    `Noise(seed, range(8, 16), (C, H, W))()` -> the next (8,C,H,W). It is drawn on the CPU, so that
    a seed means the same images on every device. purpose: what the noise is for.
    """

    def __init__(
        self,
        seed: int,
        indices: Iterable[int],
        shape: tuple[int, ...],
        device: str | torch.device = "cpu",
        purpose: int = Purpose.SAMPLE,
    ):
        self.generators = [generator("cpu", seed, purpose, i) for i in indices]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        noise = [torch.randn(self.shape, generator=random) for random in self.generators]
        return torch.stack(noise).to(self.device)
