"""What is measured of a model and of its samples, each as a dictionary for metrics.json.

    bound(model, unseen, 1000)                        # bits/dim: {"mean": .., "standard_error": .., "images": ..}
    distances(judge, sets, data, unseen, root)        # of samples, of held-out real images (floor), of noise (ceiling)
    memorization(judge, samples, data, unseen, root)  # and a picture of the nearest training images
    sweep(judge, drawn, data, unseen, root)           # Frechet distance and cost of each way to sample

Letters in the shape columns: N images, C channels, H and W height and width, T the number of steps.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from Dataset import DiffSet, to_float, to_uint8
from diffusion import likelihood
from evaluation import distances as Distances
from evaluation import features as Features
from evaluation import neighbours
from runtime.randomness import Purpose
from sampling.samplers import Noise

# ---- bits/dim ----------------------------------------------------------------------------------------------------------


def batches(
    unseen: DiffSet, count: int, size: int, device: Any, title: str
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Numbers, x_0 and labels of `unseen.some(count)`, with a progress bar where there is a title."""
    for indices in tqdm(
        unseen.some(count).split(size),
        desc=title,
        unit=" batches",
        disable=not title,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ):
        yield (
            indices.tolist(),
            to_float(unseen.images[indices].to(device)),
            unseen.labels[indices].to(device),
        )


def of_image(bits: Tensor, unseen: DiffSet) -> dict[str, float]:
    """Mean over images with its standard error; where 28x28 became 32x32 also for each of their own values, since the border is
    black and tells nothing."""
    own = {"mean_28x28": bits.mean().item() * 32**2 / 28**2} if unseen.padded else {}
    return {
        "mean": bits.mean().item(),
        "standard_error": bits.std().item() / len(bits) ** 0.5,
        **own,
        "images": len(bits),
    }


def bound(
    model: Any,
    unseen: DiffSet,
    count: int,
    terms: int | None = 16,
    seed: int = 0,
    batch_size: int = 100,
    title: str = "the variational bound",
    stopped: Callable[[], Any] = bool,
) -> dict[str, Any]:
    """The variational bound in bits/dim of `count` images: L_0, L_T and `terms` of the others, drawn for each image; or with
    every term, as "terms", where that is None. Between two batches `stopped()` can end it, with nothing."""
    found = []
    for indices, x_0, y in batches(unseen, count, batch_size, model.device, title):
        if stopped():
            return {}
        noise = Noise(seed, indices, tuple(x_0.shape[1:]), model.device, Purpose.LIKELIHOOD_NOISE)
        given = y if model.unet.classes else None
        if terms is None:
            found.append(likelihood.bound(model, x_0, noise, given))
        else:
            place = torch.special.ndtr(
                Noise(seed, indices, (terms,), model.device, Purpose.LIKELIHOOD_TIME)()
            )
            found.append(likelihood.estimate(model, x_0, noise, place, given)[None])
    parts = torch.cat(found, dim=1).cpu().double()  # (T+1,N) or (1,N)
    return of_image(parts.sum(0), unseen) | (
        {"terms": parts.mean(1).tolist()} if terms is None else {"drawn_terms": terms}
    )


def flow(
    model: Any, unseen: DiffSet, count: int, seed: int = 0, batch_size: int = 100
) -> dict[str, Any]:
    """The likelihood of the probability flow (Song et al. 2021) in bits/dim of `count` images. Raises ValueError where it cannot be
    integrated."""
    found = []
    for indices, x_0, y in batches(unseen, count, batch_size, model.device, "the probability flow"):
        shape = tuple(x_0.shape[1:])
        place = torch.special.ndtr(
            Noise(seed, indices, shape, model.device, Purpose.LIKELIHOOD_TIME)()
        )
        noise = Noise(seed, indices, shape, model.device, Purpose.LIKELIHOOD_NOISE)
        found.append(likelihood.flow(model, x_0, place, noise, y if model.unet.classes else None))
    return of_image(torch.cat(found).cpu().double(), unseen)


# ---- samples -----------------------------------------------------------------------------------------------------------


def noise(count: int, shape: tuple[int, ...]) -> Tensor:
    """uint8 (count,C,H,W) of standard normal noise, cut off as samples are: as far from images as a model begins."""
    return torch.cat(
        [
            to_uint8(Noise(0, numbers.tolist(), shape, purpose=Purpose.PURE_NOISE)())
            for numbers in torch.arange(count).split(1000)
        ]
    )


def spread(values: list[float]) -> dict[str, Any]:
    """Of one number for each set of samples."""
    return {
        "mean": sum(values) / len(values),
        "lowest": min(values),
        "highest": max(values),
        "sets": values,
    }


def distances(
    judge: Any,
    sets: list[Tensor],
    data: DiffSet,
    unseen: DiffSet,
    root: str | Path,
    references: int | None = None,
    labels: Tensor | None = None,
    batch_size: int = 100,
) -> dict[str, Any]:
    """How far sets of samples, each uint8 (N,C,H,W), are from the training images (`references` of them) and from the unseen
    ones. Every number comes with that of held-out real images, of the other split (floor), and of as many images of noise (ceiling).
    Where there are fewer held-out images than samples, "fewer" is that of as many samples: these distances fall with the number.
    labels (N,): the classes that were asked for; a classifier says how many it sees."""
    count, shape = len(sets[0]), tuple(sets[0].shape[1:])
    looked = [
        Features.seen(judge, images, f"{judge.name} looks at samples", batch_size)
        for images in sets
    ]
    blank = Features.seen(judge, noise(count, shape), f"{judge.name} looks at noise", batch_size)
    real = {
        "train": Features.reference(judge, data, root, references, batch_size),
        "test": Features.reference(judge, unseen, root, references, batch_size),
    }
    found: dict[str, Any] = {
        "weights_digest": judge.digest,
        "published_weights": judge.published,
        "images": count,
        "sets": len(sets),
    }
    held = {
        to: real["test" if to == "train" else "train"][:count] for to in real
    }  # the floor: real images that are none of these
    fewer = {to: len(features) for to, features in held.items() if len(features) < count}
    with tqdm(
        total=2 * (len(sets) + 2) + len(sets) * len(fewer),
        desc=f"distances, {judge.name}",
        unit=" sets",
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ) as bar:

        def between(features: Tensor, to: str, of_real: Any) -> dict[str, float]:
            bar.update(1)
            return Distances.between(features, real[to], of_real)

        for to in real:
            of_real = Distances.statistics(real[to])
            each = [between(features, to, of_real) for features, _ in looked]
            floor, ceiling = between(held[to], to, of_real), between(blank[0], to, of_real)
            found[f"to_{to}"] = {
                "images": len(real[to]),
                "floor_images": len(held[to]),
                "manifold_images": min(count, len(real[to]), Distances.MANIFOLD),
            } | {
                name: spread([one[name] for one in each])
                | {"floor": floor[name], "ceiling": ceiling[name]}
                for name in floor
            }
            if to in fewer:
                of_fewer = [between(features[: fewer[to]], to, of_real) for features, _ in looked]
                found[f"to_{to}"]["fewer"] = {"images": fewer[to]} | {
                    name: spread([one[name] for one in of_fewer]) for name in floor
                }
    if judge.name == "inception":
        held_out = unseen.images[unseen.some(min(count, references or count))]
        score = Distances.inception_score(
            Features.seen(judge, held_out, "inception looks at unseen images", batch_size)[1]
        )
        found["inception_score"] = spread(
            [Distances.inception_score(logits) for _, logits in looked]
        ) | {
            "floor": score,
            "floor_images": len(held_out),
            "ceiling": Distances.inception_score(blank[1]),
        }
    if judge.name == "classifier":
        classes = len(data.classes)
        votes = torch.cat([logits.argmax(1) for _, logits in looked])
        found |= {
            "accuracy": float(judge.net.accuracy),
            "class_names": list(data.classes),
            "shares": (torch.bincount(votes, minlength=classes) / len(votes)).tolist(),
            "real_shares": (torch.bincount(data.labels, minlength=classes) / len(data)).tolist(),
        }
        if labels is not None:
            found["as_asked"] = spread(
                [float((logits.argmax(1) == labels).float().mean()) for _, logits in looked]
            )
    return found


def memorization(
    judge: Any,
    samples: Tensor,
    data: DiffSet,
    unseen: DiffSet,
    root: str | Path,
    references: int | None = None,
    batch_size: int = 100,
) -> tuple[dict[str, Any], Tensor]:
    """`Neighbours.audit` of samples, uint8 (N,C,H,W), in pixels and in features; and a picture, uint8 (C,H',W'), of the eight whose
    nearest training image is nearest in features, by how near the nearest unseen one is."""
    train, held_out = data.images[data.some(references)], unseen.images[unseen.some(references)]
    of = {
        "pixels": [images.flatten(1) for images in (samples, train, held_out)],
        "features": [
            Features.seen(judge, samples, batch_size=batch_size)[0],
            *(
                Features.reference(judge, split, root, references, batch_size)
                for split in (data, unseen)
            ),
        ],
    }
    found, quotients = {}, {}
    for name in tqdm(of, f"memorization, {judge.name}", unit=" audits", leave=False):
        found[name], quotients[name] = neighbours.audit(*of[name])
    worst = quotients["features"].argsort()[:8]
    rows = [
        neighbours.nearest(three[0][worst], three[1], min(4, len(train)))[1]
        for three in of.values()
    ]
    return {"images": len(samples), "train_images": len(train), **found}, neighbours.picture(
        samples[worst], train, rows[0], rows[1]
    )


def sweep(
    judge: Any,
    drawn: Iterable[tuple[Any, list[Any]]],
    data: DiffSet,
    unseen: DiffSet,
    root: str | Path,
    references: int | None = None,
    batch_size: int = 100,
) -> dict[str, Any]:
    """The Frechet distance to the training images for each way to sample, over its sets, (uint8 (N,C,H,W), cost) each; what one image
    took; and that of as many unseen images (floor) and of as many of noise (ceiling)."""
    real = Features.reference(judge, data, root, references, batch_size)
    of_real, rows, shape = Distances.statistics(real), [], torch.Size()

    def distance(images: Tensor) -> float:
        return Distances.frechet(
            Distances.statistics(Features.seen(judge, images, "features", batch_size)[0]), of_real
        )

    for how, sets in drawn:
        each, shape = [distance(images) for images, _ in sets], sets[0][0].shape
        rows.append(
            vars(how)
            | sets[0][1]
            | {
                "seconds": sum(cost["seconds"] for _, cost in sets) / len(sets),
                "frechet": spread(each),
            }
        )
    held_out = Features.reference(judge, unseen, root, references, batch_size)[: shape[0]]
    return {
        "rows": rows,
        "train_images": len(real),
        "floor": Distances.frechet(Distances.statistics(held_out), of_real),
        "floor_images": len(held_out),
        "ceiling": distance(noise(shape[0], tuple(shape[1:]))),
    }
