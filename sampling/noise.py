"""The noise of each image, which does not depend on batch size or number of processes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runtime.randomness import Purpose, generator


class Noise:
    """Standard normal noise. Image i has its own generator, seeded by (seed, purpose, i).

    Each call of the object `Noise(seed, range(8, 16), (C, H, W))` returns new noise (8,C,H,W). It
    is drawn on the CPU, so that a seed gives the same noise on every device.
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
