"""The likelihood of held-out images in bits/dim, as dictionaries for metrics.json.

    variational_bound(model, test_set, 1000)    # {"mean": .., "standard_error": .., "images": ..}
    flow_likelihood(model, test_set, 50)

Letters in the shape columns: N images, B batch, C channels, H and W height and width, T the number
of steps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from Dataset import DiffSet, to_float
from diffusion import likelihood
from diffusion.probability_flow import flow
from DiffusionModel import DiffusionModel
from runtime.progress_bar import progress_bar
from runtime.randomness import Purpose
from sampling.noise import Noise


def batches(
    data: DiffSet, count: int, batch_size: int, device: str | torch.device, title: str
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield indices, x_0 (B,C,H,W) and labels (B,) of `data.subset(count)`, batch by batch.

    title: title of the progress bar; if it is empty, no bar is shown.
    """
    for indices in progress_bar(
        data.subset(count).split(batch_size),
        title,
        unit=" batches",
        disable=not title,
    ):
        x_0 = to_float(data.images[indices].to(device))
        yield indices.tolist(), x_0, data.labels[indices].to(device)


def known_labels(model: DiffusionModel, y: Tensor) -> Tensor | None:
    """The labels (B,) of the dataset, if the model was trained with them; None otherwise."""
    return y if model.settings.uses_labels else None


def summarize(bits: Tensor, data: DiffSet) -> dict[str, float]:
    """Mean of bits/dim (N,) and its standard error.

    If 28x28 images were padded to 32x32, "mean_28x28" has the same total divided by the dimensions
    of the original image, because the black border carries no information.
    """
    summary: dict[str, float] = {
        "mean": bits.mean().item(),
        "standard_error": bits.std().item() / len(bits) ** 0.5,
    }
    if data.padded:
        summary["mean_28x28"] = bits.mean().item() * 32**2 / 28**2
    summary["images"] = len(bits)
    return summary


def variational_bound(
    model: DiffusionModel,
    data: DiffSet,
    count: int,
    terms: int | None = 16,
    seed: int = 0,
    batch_size: int = 100,
    title: str = "the variational bound",
    stopped: Callable[[], object] = lambda: False,
) -> dict[str, Any]:
    """The variational bound in bits/dim of `count` images, as `summarize` returns it.

    terms: number of terms sampled for each image besides L_0 and L_T, returned as "drawn_terms".
    With None, all terms are computed, and their means are returned as "terms". stopped: called
    before each batch; if it returns true, the result is an empty dictionary.
    """
    bounds = []
    for indices, x_0, y in batches(data, count, batch_size, model.device, title):
        if stopped():
            return {}
        shape = tuple(x_0.shape[1:])
        noise = Noise(seed, indices, shape, model.device, Purpose.LIKELIHOOD_NOISE)
        labels = known_labels(model, y)
        if terms is None:
            bounds.append(likelihood.bound(model, x_0, noise, labels))  # (T+1,B)
        else:
            uniform = uniform_noise(seed, indices, (terms,), model.device)
            estimate = likelihood.estimate(model, x_0, noise, uniform, labels)  # (B,)
            bounds.append(estimate[None])
    bits = torch.cat(bounds, dim=1).cpu().double()  # (T+1,N) or (1,N)
    summary = summarize(bits.sum(0), data)
    if terms is None:
        return summary | {"terms": bits.mean(1).tolist()}
    return summary | {"drawn_terms": terms}


def flow_likelihood(
    model: DiffusionModel, data: DiffSet, count: int, seed: int = 0, batch_size: int = 100
) -> dict[str, Any]:
    """The likelihood of the probability flow (Song et al. 2021) in bits/dim of `count` images.

    Raises ValueError if the flow cannot be integrated.
    """
    title, bits = "the probability flow", []
    for indices, x_0, y in batches(data, count, batch_size, model.device, title):
        shape = tuple(x_0.shape[1:])
        uniform = uniform_noise(seed, indices, shape, model.device)
        noise = Noise(seed, indices, shape, model.device, Purpose.LIKELIHOOD_NOISE)
        labels = known_labels(model, y)
        bits.append(flow(model, x_0, uniform, noise, labels))
    return summarize(torch.cat(bits).cpu().double(), data)


def uniform_noise(
    seed: int, indices: list[int], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Uniform random numbers in [0, 1], (B, *shape)."""
    return torch.special.ndtr(Noise(seed, indices, shape, device, Purpose.LIKELIHOOD_TIME)())
