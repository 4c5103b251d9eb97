"""Are samples copies? The training images nearest to them, and how near, measured by what real images have.

    audit(samples, train, unseen)       # each (N,F), pixels or features: {"ratio": .., "copies": .., "duplicates": ..}
    nearest(samples, train, 3)          # distances and numbers (N,3) of the nearest
    picture(...)                        # samples beside their neighbours

Letters in the shape columns: N and M images, C channels, H and W height and width, F features or pixels.
"""

import torch
from torch import Tensor

PART = 10_000  # images that are compared at once
SHARE = 0.01  # of the real images that are nearer to others than what is called a copy
SAME = 0.001  # of an image's distance from the mean image, which rounding can make


def nearest(images: Tensor, others: Tensor, count: int = 1, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N,count), rising, of images (N,F) to the nearest of others (M,F), and the numbers of those (N,count).
    itself: `others` are the same images, and none is its own neighbour. Both may be uint8: numbers in double precision, without which
    near ones are mistaken for each other (cdist subtracts squares), are made of a part at a time."""
    found = []
    for start in range(0, len(images), 1000):
        part = images[start:start + 1000].double()
        values, numbers = torch.zeros(len(part), 0).double(), torch.zeros(len(part), 0, dtype=torch.long)
        for first in range(0, len(others), PART):
            distances = torch.cdist(part, others[first:first + PART].double())   # (n,m)
            if itself:
                here = torch.arange(len(part)) + start
                here = here[(here >= first) & (here < first + distances.shape[1])]
                distances[here - start, here - first] = torch.inf
            near = distances.topk(min(count, distances.shape[1]), largest=False)
            values, numbers = torch.cat([values, near.values], 1), torch.cat([numbers, near.indices + first], 1)
            order = values.argsort(dim=1)[:, :count]
            values, numbers = values.gather(1, order), numbers.gather(1, order)
        found.append((values.float(), numbers))
    values, numbers = zip(*found)
    return torch.cat(values), torch.cat(numbers)


def audit(samples: Tensor, train: Tensor, unseen: Tensor) -> dict[str, float]:
    """How near samples (N,F) are to the images of the training (M,F) and to unseen ones, all of them in an order without meaning.

    ratio: the mean distance to the nearest training image by that to the nearest unseen one, among equally many of both (the
    training images taken in parts); 1 for a model that knows no training image better than what it stands for. copies: the share
    of samples that are as near to a training image as the nearest `SHARE` of the unseen images are, which is what to expect.
    duplicates: the share of samples that are as near to another sample as `SHARE` of as many unseen images are to each other.
    """
    count = min(len(train), len(unseen))
    to_unseen = nearest(samples, unseen[:count])[0]
    pieces = train[:len(train) // count * count].split(count)
    to_train = sum(float(nearest(samples, piece)[0].mean()) for piece in pieces) / len(pieces)
    few, real = min(len(samples), len(unseen)), unseen[:1000].float()
    same = float((real - real.mean(0)).norm(dim=1).mean()) * SAME
    return {"ratio": to_train / max(float(to_unseen.mean()), 1e-9),
            "copies": share_within(nearest(samples, train)[0], nearest(unseen[:few], train)[0], same),
            "duplicates": share_within(nearest(samples[:few], samples[:few], itself=True)[0],
                                       nearest(unseen[:few], unseen[:few], itself=True)[0], same)}


def share_within(distances: Tensor, real: Tensor, same: float) -> float:
    """The share of distances up to the `SHARE` quantile of the real ones, or up to `same`, which is as good as none."""
    return float((distances <= max(float(real.quantile(SHARE)), same)).float().mean())


def picture(samples: Tensor, train: Tensor, by_pixel: Tensor, by_feature: Tensor, columns: int = 4) -> Tensor:
    """uint8 (C,H,W): a row for each sample (N,C,H,W): itself, its neighbours of train (M,C,H,W) by their numbers (N,>=columns) in
    pixels, and those in features, with gray between."""
    N, C, H, _ = samples.shape
    gap = torch.full((N, C, H + 2, 6), 128, dtype=torch.uint8)

    def framed(images: Tensor) -> Tensor:
        return torch.nn.functional.pad(images, (1, 1, 1, 1), value=128)

    def row_of(numbers: Tensor) -> list[Tensor]:
        return [framed(train[numbers[:, i]]) for i in range(min(columns, numbers.shape[1]))]

    tiles = torch.cat([framed(samples), gap, *row_of(by_pixel), gap, *row_of(by_feature)], dim=3)       # (N,C,H+2,..)
    return torch.cat(list(tiles), dim=1)
