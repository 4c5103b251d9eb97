"""Are samples copies? The training images nearest to them, and how near, measured by what real images have.

    audit(samples, train, unseen)       # pixels or features: {"ratio": .., "copies": .., "duplicates": ..}, and of each sample
    nearest(samples, train, 3)          # distances and numbers (N,3) of the nearest
    picture(...)                        # samples beside their neighbours

Letters in the shape columns: N and M images, C channels, H and W height and width, F features or pixels.
"""

import torch
from torch import Tensor

PART = 10_000  # images that are compared at once
SHARE = 0.01  # of the real images: those that are nearest to others
SAME = 0.001  # of an image's distance from the mean image, which rounding can make: as good as none


def nearest(
    images: Tensor, others: Tensor, count: int = 1, itself: bool = False
) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N,count), rising, of images (N,F) to the nearest of others (M,F), and the numbers of those (N,count).
    itself: `others` begin with the same images, and none is its own neighbour. Both may be uint8; a part at a time is compared in
    double precision, without which near images are mistaken for each other (cdist subtracts squares)."""
    found = []
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].double()
        values, numbers = (
            torch.zeros(len(part), 0).double(),
            torch.zeros(len(part), 0, dtype=torch.long),
        )
        for first in range(0, len(others), PART):
            distances = torch.cdist(part, others[first : first + PART].double())  # (n,m)
            if itself:
                here = torch.arange(len(part)) + start
                here = here[(here >= first) & (here < first + distances.shape[1])]
                distances[here - start, here - first] = torch.inf
            near = distances.topk(min(count, distances.shape[1]), largest=False)
            values, numbers = (
                torch.cat([values, near.values], 1),
                torch.cat([numbers, near.indices + first], 1),
            )
            order = values.argsort(dim=1)[:, :count]
            values, numbers = values.gather(1, order), numbers.gather(1, order)
        found.append((values.float(), numbers))
    values, numbers = zip(*found)
    return torch.cat(values), torch.cat(numbers)


def audit(samples: Tensor, train: Tensor, unseen: Tensor) -> tuple[dict[str, float], Tensor]:
    """How near samples (N,F) are to the images of the training (M,F) and to unseen ones (L,F), all in an order without meaning; and
    each sample's distance to the nearest of the training by that to the nearest unseen one (N,).

    ratio: the mean distance to the nearest training image by that to the nearest unseen one, among equally many of both (the
    training images taken in parts); 1 for a model that knows no training image better than what it stands for, in the manner of
    the three-sample test of Meehan et al. 2020, "A non-parametric test to detect data-copying". copies: the share of samples
    whose own quotient of these distances is as small as that of the lowest `SHARE` of the unseen images. duplicates: the share
    of samples that another one is nearer to than half of what is usual for the nearest `SHARE` of as many unseen images, in
    parts of the median distance within the set. Quotients, because smooth and pale images are near to everything.
    """
    parts = train.split(min(len(train), len(unseen)))  # the last one may be smaller
    unseen = unseen[: len(parts[0])]
    real, drawn = unseen[:1000].double(), samples[:1000].double()
    same = max(float((real - real.mean(0)).norm(dim=1).mean()) * SAME, 1e-9)
    to_parts = torch.cat(
        [nearest(samples, part)[0] for part in parts], dim=1
    )  # (N, number of parts)
    to_unseen = nearest(samples, unseen)[0][:, 0].clamp(min=same)  # (N,)
    quotient = to_parts.min(1).values / to_unseen
    usual = nearest(real, train)[0][:, 0] / nearest(real, unseen, itself=True)[0][:, 0].clamp(
        min=same
    )
    few = min(len(real), len(drawn))  # the nearest of more is nearer
    real, drawn = real[:few], drawn[:few]
    spread, usual_spread = (float(torch.pdist(images).median()) for images in (drawn, real))
    apart = nearest(drawn, drawn, itself=True)[0] / max(
        spread, usual_spread / 2, 1e-9
    )  # the same image over and over has no spread
    usually = nearest(real, real, itself=True)[0] / max(usual_spread, 1e-9)
    whole = to_parts[:, : len(train) // len(parts[0])]
    return {
        "ratio": float(whole.mean() / to_unseen.mean()),
        "copies": share(quotient <= max(float(usual.quantile(SHARE)), SAME)),
        "duplicates": share(apart <= max(float(usually.quantile(SHARE)) / 2, SAME)),
    }, quotient


def share(true: Tensor) -> float:
    return float(true.float().mean())


def picture(
    samples: Tensor, train: Tensor, by_pixel: Tensor, by_feature: Tensor, columns: int = 4
) -> Tensor:
    """uint8 (C,H,W): a row for each sample (N,C,H,W): itself, its neighbours of train (M,C,H,W) by their numbers (N,>=columns) in
    pixels, and those in features, with gray between."""
    N, C, H, _ = samples.shape
    gap = torch.full((N, C, H + 2, 6), 128, dtype=torch.uint8)

    def framed(images: Tensor) -> Tensor:
        return torch.nn.functional.pad(images, (1, 1, 1, 1), value=128)

    def row_of(numbers: Tensor) -> list[Tensor]:
        return [framed(train[numbers[:, i]]) for i in range(min(columns, numbers.shape[1]))]

    tiles = torch.cat(
        [framed(samples), gap, *row_of(by_pixel), gap, *row_of(by_feature)], dim=3
    )  # (N,C,H+2,..)
    return torch.cat(list(tiles), dim=1)
