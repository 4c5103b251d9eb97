"""Sets of features and images that several tests compare."""

import torch
import torch.nn.functional as F


def normal(count, size, shift=0.0, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def noisy(images, level):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images.float() + level * noise).round().clamp(0, 255).byte()


def blurred(images, level):
    if not level:
        return images
    axis = torch.arange(-12.0, 13)
    weights = torch.exp(-(axis**2) / 2 / level**2)
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 25, 25)
    return (
        F.conv2d(F.pad(images.float(), (12,) * 4, mode="replicate"), kernel, groups=3)
        .round()
        .byte()
    )
