"""Whether samples are copies: their nearest training images, and the distances to them.

    audit(samples, train, test)      # in pixels or features: ({"ratio": .., ..}, quotients (N,))
    audit_pair(samples, reference)   # the same without held-out images
    nearest(samples, train, 3)       # distances and indices (N,3) of the nearest images
    draw_neighbours(...)             # an image of samples beside their neighbours

Letters in the shape columns: N, M and L images, C channels, H and W height and width, F features
or pixels.
"""

import math

import numpy as np
import torch
from torch import Tensor

from image_data.grids import image_grid
from image_data.mapped_images import Images

QUERY_CHUNK = 1000  # most images whose neighbours are searched for at once
SEARCH_CHUNK = 10_000  # most images that are searched through at once
CHUNK_BYTES = 2**28  # of the features of a chunk, in double precision
REAL_IMAGES = 1000  # held-out images, and samples, that define typical distances
SHARE = 0.01  # quantile of the real images; samples that are nearer count as copies
ROUNDING = 0.001  # relative to the distance from the mean image; smaller distances count as zero
TINY = 1e-9  # avoids a division by zero
GRAY = 128  # gray level between the images of `draw_neighbours`
GROUP_GAP = 6  # pixels between the groups of a row


def nearest(
    images: Images, others: Images, count: int = 1, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N,count) to the nearest of `others`, ascending, and their indices.

    images (N,F) and others (M,F) may also be uint8 (N,C,H,W) and (M,C,H,W). exclude_self: `others`
    begins with the same images, and no image counts as its own neighbour. Computed in double
    precision: cdist subtracts squares, so in float32 rounding would affect images that are near
    each other.
    """
    all_distances, all_indices = [], []
    largest = CHUNK_BYTES // (8 * math.prod(images.shape[1:]))
    query_chunk, search_chunk = min(QUERY_CHUNK, largest), min(SEARCH_CHUNK, largest)
    for start in range(0, len(images), query_chunk):
        queries = rows(images[start : start + query_chunk])
        values = torch.zeros(len(queries), 0).double()
        indices = torch.zeros(len(queries), 0, dtype=torch.long)
        for first in range(0, len(others), search_chunk):
            distances = torch.cdist(queries, rows(others[first : first + search_chunk]))  # (n,m)
            if exclude_self:
                own = torch.arange(len(queries)) + start
                own = own[(own >= first) & (own < first + distances.shape[1])]
                distances[own - start, own - first] = torch.inf
            found = distances.topk(min(count, distances.shape[1]), largest=False)
            values = torch.cat([values, found.values], 1)
            indices = torch.cat([indices, found.indices + first], 1)
            order = values.argsort(dim=1)[:, :count]
            values, indices = values.gather(1, order), indices.gather(1, order)
        all_distances.append(values.float())
        all_indices.append(indices)
    return torch.cat(all_distances), torch.cat(all_indices)


def rows(images: Tensor) -> Tensor:
    """Images or features as double precision (N,F)."""
    return images.flatten(1).double()


def audit(samples: Tensor, train: Images, test: Images) -> tuple[dict[str, float], Tensor]:
    """Compare the distances of samples to training images with those to held-out images.

    samples (N,F), train (M,F) and test (L,F), or images themselves, are in random order. Also
    returns for each sample the distance to the nearest training image divided by the distance to
    the nearest held-out image (N,). Quotients are used because smooth and pale images are near
    every image.

    ratio: the mean distance to the nearest training image divided by the mean distance to the
    nearest held-out image. The training images are split into chunks as large as the held-out
    set, so that both distances are minima over the same number of images. The ratio is 1 for a
    model that has learned the distribution and nothing specific to the training images. It follows
    the three-sample test of Meehan et al. 2020, "A non-parametric test to detect data-copying".

    copies: the share of samples whose quotient is at most the `SHARE` quantile of the quotients of
    held-out images. duplicates: see `duplicate_share`.
    """
    chunks = train.split(min(len(train), len(test)))  # the last one may be smaller
    test = test.split(len(chunks[0]))[0]
    real, own = rows(test[:REAL_IMAGES]), rows(samples[:REAL_IMAGES])
    deviation = float((real - real.mean(0)).norm(dim=1).mean())
    zero = max(deviation * ROUNDING, TINY)
    to_chunks = torch.cat([nearest(samples, chunk)[0] for chunk in chunks], dim=1)  # (N, chunks)
    to_test = nearest(samples, test)[0][:, 0].clamp(min=zero)  # (N,)
    quotients = to_chunks.min(1).values / to_test

    real_to_train = nearest(real, train)[0][:, 0]
    real_to_test = nearest(real, test, exclude_self=True)[0][:, 0].clamp(min=zero)
    usual = float((real_to_train / real_to_test).quantile(SHARE))
    count = min(len(real), len(own))  # with more images, the nearest one is nearer
    full_chunks = to_chunks[:, : len(train) // len(chunks[0])]
    return {
        "ratio": float(full_chunks.mean() / to_test.mean()),
        "copies": share(quotients <= max(usual, ROUNDING)),
        "duplicates": duplicate_share(own[:count], real[:count]),
    }, quotients


def audit_pair(samples: Tensor, reference: Tensor) -> tuple[dict[str, float], Tensor]:
    """Compare the distances of samples to a set of images with the distances within that set.

    samples (N,F) and reference (M,F), each in random order. Also returns the distance of each
    sample to the nearest reference image (N,).

    ratio: the mean of these distances divided by the mean distance of a reference image to the
    nearest other one. equal: the share of samples that equal a reference image. duplicates: see
    `duplicate_share`. This cannot distinguish a copy from a smooth or pale image, which is near
    every image. That needs held-out images: see `audit`.
    """
    real, own = reference[:REAL_IMAGES].double(), samples[:REAL_IMAGES].double()
    zero = max(float((real - real.mean(0)).norm(dim=1).mean()) * ROUNDING, TINY)
    distances = nearest(samples, reference)[0][:, 0]  # (N,)
    within = nearest(real, reference, exclude_self=True)[0][:, 0]
    count = min(len(real), len(own))  # with more images, the nearest one is nearer
    return {
        "ratio": float(distances.mean() / within.mean().clamp(min=zero)),
        "equal": share(distances <= zero),
        "duplicates": duplicate_share(own[:count], real[:count]),
    }, distances


def duplicate_share(samples: Tensor, real: Tensor) -> float:
    """Share of samples (N,F) that are unusually near to another sample.

    Distances are relative to the median distance within the set. A sample is unusually near to
    another if their distance is at most half the `SHARE` quantile of the nearest-neighbour
    distances among the same number of real images (N,F).
    """
    spread = float(torch.pdist(samples).median())
    real_spread = float(torch.pdist(real).median())
    spread = max(spread, real_spread / 2, TINY)  # the spread of equal samples is 0
    apart = nearest(samples, samples, exclude_self=True)[0] / spread
    real_apart = nearest(real, real, exclude_self=True)[0] / max(real_spread, TINY)
    return share(apart <= max(float(real_apart.quantile(SHARE)) / 2, ROUNDING))


def share(true: Tensor) -> float:
    """Share of the values that are true."""
    return float(true.float().mean())


def draw_neighbours(
    samples: Tensor, train: Images, by_pixels: Tensor, by_features: Tensor, columns: int = 4
) -> Tensor:
    """Draw each sample in a row with its nearest training images: uint8 (C,H',W').

    samples (N,C,H,W), train (M,C,H,W). by_pixels, by_features: indices (N,>=columns) of the
    neighbours, drawn as two groups with a gray gap before each.
    """
    N, C = samples.shape[:2]
    groups = [samples]
    for indices in (by_pixels, by_features):
        groups.append(train[indices[:, :columns].flatten()])
    panels = []
    for images in groups:
        pixels = images.permute(0, 2, 3, 1).numpy()  # (N * columns,H,W,C)
        framed = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=GRAY)
        panels.append(image_grid(framed, columns=len(images) // N, gap=0))
    gap = np.full((panels[0].shape[0], GROUP_GAP, C), GRAY, np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    return torch.from_numpy(picture).permute(2, 0, 1)  # (C,H',W')
