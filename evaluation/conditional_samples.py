"""How close the samples of an image-conditional model are to the original images.

    measured, picture = measure_conditional(model, plan, test_set, classifier, 125, seed=0, ...)

A condition, such as a smaller image, is made from each of 125 unseen images, and `SAMPLES_EACH`
samples are drawn for it. The samples differ where the condition leaves something open. Their mean
has a smaller squared error than a single sample, but is blurred where they differ.

Letters in the shape columns: N images, S samples for each, C channels, K channels of the condition,
H and W height and width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from Dataset import DiffSet, to_float, to_uint8
from diffusion.conditions import as_picture
from diffusion.draws import unseen_conditions
from DiffusionModel import DiffusionModel
from evaluation.classifier import Classifier, Residual, resized
from image_data.grids import image_grid
from runtime.progress_bar import progress_bar
from sampling.plan import SamplingPlan, sample_steps

SAMPLES_EACH = 8
PICTURED = 8  # images in the picture
PICTURED_SAMPLES = 3


@dataclass(frozen=True)
class ConditionalSamples:
    """Unseen images (N,C,H,W), their conditions (N,K,H,W) and the samples (N,S,C,H,W), all in
    [-1, 1] and on the CPU."""

    originals: Tensor
    conditions: Tensor
    samples: Tensor


def measure_conditional(
    model: DiffusionModel,
    plan: SamplingPlan,
    test_set: DiffSet,
    classifier: Classifier | None,
    count: int,
    seed: int,
    batch_size: int,
) -> tuple[dict[str, Any], Tensor]:
    """PSNR in dB and, with a classifier, perceptual distance: of one sample, of the mean sample,
    and of the condition (not of "edges"). Also returns a picture, uint8 (C,H',W')."""
    found = sample_conditional(model, plan, test_set, count, seed, batch_size)
    kind, depth = model.settings.condition, model.unet.depth
    mean = found.samples.mean(dim=1)  # (N,C,H,W)
    estimates = {"one_sample": list(found.samples.unbind(dim=1)), "mean_sample": [mean]}
    if kind != "edges":
        estimates["condition"] = [as_picture(found.conditions, depth)]
    measured: dict[str, Any] = {
        "condition": kind,
        "images": len(found.originals),
        "samples_each": SAMPLES_EACH,
        "psnr": {name: average(psnr, one, found.originals) for name, one in estimates.items()},
        # the standard deviation of a pixel over the samples, in units of the range 0 to 255
        "spread": float(found.samples.std(dim=1).mean()) * 127.5,
    }
    if classifier is not None:

        def distance(a: Tensor, b: Tensor) -> Tensor:
            return perceptual_distance(classifier, a, b)

        measured["perceptual"] = {
            name: average(distance, one, found.originals) for name, one in estimates.items()
        }
    return measured, draw_samples(found, mean, depth)


@torch.no_grad()
def sample_conditional(
    model: DiffusionModel,
    plan: SamplingPlan,
    test_set: DiffSet,
    count: int,
    seed: int,
    batch_size: int,
) -> ConditionalSamples:
    """Sample for `count` unseen images, each with its label if the model has classes. Sample s for
    image i depends on (seed, i, s) and on the condition, whose mask depends on (seed, i)."""
    chosen = test_set.subset(count)
    labels = test_set.labels[chosen] if model.unet.classes else None  # (N,)
    x = to_float(test_set.images[chosen])  # (N,C,H,W), for pairs (N,C+K,H,W)
    originals, conditions = unseen_conditions(x, model.settings.condition, model.unet.depth, seed)
    numbers = range(len(originals) * SAMPLES_EACH)
    title = f"sampling, {plan.sampler}, {plan.steps} steps"
    bar = progress_bar(title=title, total=len(numbers), unit=" images")
    parts = []
    with bar:
        for indices in in_batches(numbers, batch_size):
            rows = torch.tensor(indices) // SAMPLES_EACH
            given = conditions[rows].to(model.device)
            y = None if labels is None else labels[rows].tolist()
            *_, (_, x_0, _) = sample_steps(model, plan, indices, seed, y, condition=given)
            parts.append(x_0.cpu())
            bar.update(len(indices))
    samples = torch.cat(parts).unflatten(0, (len(originals), SAMPLES_EACH))
    return ConditionalSamples(originals, conditions, samples.clamp(-1, 1))


def in_batches(numbers: range, size: int) -> Iterator[range]:
    """Parts of a range, of `size` numbers each."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


# ---- distances -----------------------------------------------------------------------------------


def average(distance: Any, estimates: list[Tensor], originals: Tensor) -> float:
    """The mean of distance(estimate, original) (N,) over images and estimates."""
    return float(torch.stack([distance(estimate, originals) for estimate in estimates]).mean())


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (N,), of images in [-1, 1]: 10 log10(2^2 / mean square
    error)."""
    error = (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return 10 * torch.log10(4 / error)


@torch.no_grad()
def perceptual_distance(classifier: Classifier, a: Tensor, b: Tensor) -> Tensor:
    """The distance (N,) of LPIPS, Eq. 1 of Zhang et al. 2018, with all weights 1, and with the
    classifier of the dataset as network."""
    device = next(classifier.parameters()).device
    total = torch.zeros(len(a))
    for part in in_batches(range(len(a)), 100):
        rows = slice(part.start, part.stop)
        features = zip(
            feature_maps(classifier, a[rows].to(device)),
            feature_maps(classifier, b[rows].to(device)),
        )
        for one, other in features:
            squared = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square()
            total[rows] += squared.sum(dim=1).mean(dim=(1, 2)).cpu()
    return total


def feature_maps(classifier: Classifier, x: Tensor) -> Iterator[Tensor]:
    """The output of every residual block for images (N,C,H,W) in [-1, 1]."""
    x = resized(x)
    for layer in classifier.body:
        x = layer(x)
        if isinstance(layer, Residual):
            yield x


# ---- picture -------------------------------------------------------------------------------------


def draw_samples(found: ConditionalSamples, mean: Tensor, depth: int) -> Tensor:
    """A row for each of the first images: condition, samples, their mean, original."""
    columns = [
        as_picture(found.conditions, depth),
        *found.samples[:, :PICTURED_SAMPLES].unbind(dim=1),
        mean,
        found.originals,
    ]
    shown = torch.stack(columns, dim=1)[:PICTURED].flatten(0, 1)  # (8*6,C,H,W)
    pixels = to_uint8(shown).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(image_grid(pixels, columns=len(columns))).permute(2, 0, 1)
