"""Clusters of similar images, as classes for images without labels.

    centres = find_centres(images, count=10)     # (K,F)
    labels = nearest_centres(images, centres)    # (N,)

The clusters are those of k-means on the images, reduced to 8x8 pixels. A network that knows the
cluster of an image learns faster, and clusters allow classifier-free guidance.

Letters in the shape columns: N images, C channels, H and W height and width, F = 64 C, K clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from image_data.mapped_images import Images, chunks
from runtime.randomness import Purpose, generator

SIDE = 8  # pixels
ITERATIONS = 20


def features(images: Tensor) -> Tensor:
    """Reduce images, uint8 (N,C,H,W), to (N,F) in [0, 1]."""
    return F.adaptive_avg_pool2d(images.double() / 255, SIDE).flatten(1)


def find_centres(images: Tensor, count: int) -> Tensor:
    """The centres (K,F) of `count` clusters of images, uint8 (N,C,H,W), largest cluster first.

    Lloyd's algorithm, which begins with k-means++ (Arthur & Vassilvitskii 2007). Raises ValueError,
    in one line, if there are fewer different images than clusters.
    """
    random = generator("cpu", 0, Purpose.CLUSTER)
    x = features(images)  # (N,F)
    centres = x[torch.randint(len(x), (1,), generator=random)]  # (1,F)
    while len(centres) < count:
        squared = torch.cdist(x, centres).amin(1) ** 2  # (N,)
        if not squared.any():
            raise ValueError(
                f"{count} clusters need as many different images, and there are only "
                f"{len(centres)}: choose fewer clusters"
            )
        chosen = torch.multinomial(squared, 1, generator=random)
        centres = torch.cat([centres, x[chosen]])
    for _ in range(ITERATIONS):
        label = torch.cdist(x, centres).argmin(1)  # (N,)
        sizes = torch.bincount(label, minlength=count)  # (K,)
        sums = torch.zeros_like(centres).index_add(0, label, x)
        means = sums / sizes.clamp(min=1)[:, None]
        centres = torch.where(sizes[:, None] > 0, means, centres)
    sizes = torch.bincount(torch.cdist(x, centres).argmin(1), minlength=count)
    return centres[sizes.argsort(descending=True, stable=True)]


def nearest_centres(images: Images, centres: Tensor) -> Tensor:
    """The cluster of each image, uint8 (N,C,H,W): int64 (N,)."""
    return torch.cat([torch.cdist(features(x), centres).argmin(1) for x in chunks(images)])
