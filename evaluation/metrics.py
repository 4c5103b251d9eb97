"""Measurements of samples, as dictionaries for metrics.json.

    real = RealImages(train_set, test_set, root="data")
    distances(extractor, sets, real)          # for samples, held-out images and noise
    memorization(extractor, samples, real)    # and an image of the nearest training images
    sweep(extractor, sets_of_plans, real)     # Frechet distance and cost of each sampling plan

The "floor" of a distance, if it has one, is the distance of held-out real images; the "ceiling" is
the distance of pure noise.

Letters in the shape columns: N images, C channels, H and W height and width, F features,
K classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from Dataset import DiffSet, to_uint8
from evaluation.distances import (
    MANIFOLD_IMAGES,
    all_distances,
    frechet,
    inception_score,
    statistics,
)
from evaluation.features import FeatureExtractor, extract_features
from evaluation.neighbours import audit, draw_neighbours, nearest
from evaluation.real_images import OTHER_SPLIT, RealImages, Split
from image_data.mapped_images import Images
from runtime.progress_bar import progress_bar
from runtime.randomness import Purpose
from sampling.noise import Noise
from sampling.plan import SamplingPlan
from sampling.sample_sets import SampleCost, plan_settings

LIKE_TRAINING = 8  # samples in the picture of nearest training images
NEIGHBOURS = 4  # of each sample in that picture


@dataclass(frozen=True)
class ExtractedSamples:
    """Features and logits of each set of samples, and of the same number of noise images."""

    features: list[Tensor]  # (N,F) each
    logits: list[Tensor]  # (N,K) each
    noise_features: Tensor
    noise_logits: Tensor

    @property
    def count(self) -> int:
        """Images in each set."""
        return len(self.noise_features)


def noise_images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, clipped as samples are: uint8 (count,C,H,W)."""
    chunks = torch.arange(count).split(1000)
    return torch.cat(
        [
            to_uint8(Noise(0, indices.tolist(), shape, purpose=Purpose.PURE_NOISE)())
            for indices in chunks
        ]
    )


def mean_and_range(values: list[float]) -> dict[str, Any]:
    """Mean and range of `values`, which has one number for each set of samples."""
    return {
        "mean": sum(values) / len(values),
        "lowest": min(values),
        "highest": max(values),
        "sets": values,
    }


# ---- distances -----------------------------------------------------------------------------------


def distances(
    extractor: FeatureExtractor,
    sets: list[Tensor],
    real: RealImages,
    labels: Tensor | None = None,
) -> dict[str, Any]:
    """Distances of sets of samples, each uint8 (N,C,H,W), from the training and the test images.

    labels (N,): the classes the samples were generated with; a classifier then also measures how
    many it recognizes.
    """
    samples = extract_samples(extractor, sets, real.batch_size)
    reference: dict[Split, Tensor] = {
        "train": real.features(extractor, "train"),
        "test": real.features(extractor, "test"),
    }
    measured = describe(extractor, samples)
    held_out = {split: reference[OTHER_SPLIT[split]][: samples.count] for split in reference}
    small = sum(len(features) < samples.count for features in held_out.values())
    with progress_bar(
        title=f"distances, {extractor.name}",
        total=2 * (len(sets) + 2) + len(sets) * small,
        unit=" sets",
        leave=False,
    ) as bar:
        for split, features in reference.items():
            measured[f"to_{split}"] = distances_from(samples, features, held_out[split], bar)
    if extractor.name == "inception":
        measured["inception_score"] = inception_scores(extractor, samples, real)
    if extractor.name == "classifier":
        measured |= class_shares(extractor, samples, real.train_set, labels)
    return measured


def describe(extractor: FeatureExtractor, samples: ExtractedSamples) -> dict[str, Any]:
    """Return what was compared, and with which feature extractor."""
    return {
        "weights_digest": extractor.digest,
        "published_weights": extractor.published,
        "images": samples.count,
        "sets": len(samples.features),
    }


def extract_samples(
    extractor: FeatureExtractor, sets: list[Tensor], batch_size: int
) -> ExtractedSamples:
    """Extract the features of sets of samples, each uint8 (N,C,H,W), and those of noise."""
    title = f"{extractor.name} features of samples"
    extracted = [extract_features(extractor, images, title, batch_size) for images in sets]
    noise = noise_images(len(sets[0]), tuple(sets[0].shape[1:]))
    title = f"{extractor.name} features of noise"
    noise_features, noise_logits = extract_features(extractor, noise, title, batch_size)
    return ExtractedSamples(
        features=[features for features, _ in extracted],
        logits=[logits for _, logits in extracted],
        noise_features=noise_features,
        noise_logits=noise_logits,
    )


def distances_from(
    samples: ExtractedSamples, reference: Tensor, held_out: Tensor | None, bar: tqdm
) -> dict[str, Any]:
    """Distances of samples, held-out images (M,F) and noise from reference features (N,F).

    Without held-out images there is no floor. If there are fewer held-out images than samples,
    "fewer" has the distances for that many samples, because distances get smaller with more images.
    """
    reference_statistics = statistics(reference)

    def measure(features: Tensor) -> dict[str, float]:
        bar.update(1)
        return all_distances(features, reference, reference_statistics)

    of_sets = [measure(features) for features in samples.features]
    ends = {} if held_out is None else {"floor": measure(held_out)}
    ends["ceiling"] = measure(samples.noise_features)
    measured: dict[str, Any] = {"images": len(reference)}
    if held_out is not None:
        measured["floor_images"] = len(held_out)
    measured["manifold_images"] = min(samples.count, len(reference), MANIFOLD_IMAGES)
    for name in ends["ceiling"]:
        measured[name] = mean_and_range([one[name] for one in of_sets])
        measured[name] |= {end: values[name] for end, values in ends.items()}
    if held_out is not None and len(held_out) < samples.count:
        of_fewer = [measure(features[: len(held_out)]) for features in samples.features]
        fewer: dict[str, Any] = {"images": len(held_out)}
        for name in ends["floor"]:
            fewer[name] = mean_and_range([one[name] for one in of_fewer])
        measured["fewer"] = fewer
    return measured


def inception_scores(
    extractor: FeatureExtractor, samples: ExtractedSamples, real: RealImages
) -> dict[str, Any]:
    """The Inception score of samples, of held-out images (floor) and of noise (ceiling)."""
    held_out = real.images("test", min(samples.count, real.count or samples.count))
    title = "inception features of unseen images"
    _, logits = extract_features(extractor, held_out, title, real.batch_size)
    floor = inception_score(logits)
    return mean_and_range([inception_score(logits) for logits in samples.logits]) | {
        "floor": floor,
        "floor_images": len(held_out),
        "ceiling": inception_score(samples.noise_logits),
    }


def class_shares(
    extractor: FeatureExtractor,
    samples: ExtractedSamples,
    train_set: DiffSet,
    labels: Tensor | None,
) -> dict[str, Any]:
    """Share of samples classified as each class, and as their own label in `labels` (N,)."""
    classes = len(train_set.classes)
    predicted = torch.cat([logits.argmax(1) for logits in samples.logits])
    counts = torch.bincount(predicted, minlength=classes)
    real_counts = torch.bincount(train_set.labels, minlength=classes)
    measured: dict[str, Any] = {
        "accuracy": extractor.accuracy,
        "class_names": list(train_set.classes),
        "shares": (counts / len(predicted)).tolist(),
        "real_shares": (real_counts / len(train_set)).tolist(),
    }
    if labels is not None:
        correct = [(logits.argmax(1) == labels).float() for logits in samples.logits]
        measured["as_asked"] = mean_and_range([float(one.mean()) for one in correct])
    return measured


# ---- memorization and sweeps ---------------------------------------------------------------------


def memorization(
    extractor: FeatureExtractor, samples: Tensor, real: RealImages
) -> tuple[dict[str, Any], Tensor]:
    """`neighbours.audit` of samples, uint8 (N,C,H,W), in pixels and in features.

    Also returns a picture, uint8 (C,H',W'), of the samples most like a training image: those with
    the lowest quotients in feature space.
    """
    train, test = real.images("train"), real.images("test")
    features, _ = extract_features(extractor, samples, batch_size=real.batch_size)
    compared = {
        "pixels": (samples, train, test),
        "features": (
            features,
            real.features(extractor, "train"),
            real.features(extractor, "test"),
        ),
    }
    audits, scores = {}, {}
    title = f"memorization, {extractor.name}"
    for name in progress_bar(compared, title, unit=" audits", leave=False):
        audits[name], scores[name] = audit(*compared[name])
    pairs = {name: (of_samples, of_train) for name, (of_samples, of_train, _) in compared.items()}
    picture = picture_of_nearest(samples, train, pairs, scores["features"])
    return {"images": len(samples), "train_images": len(train), **audits}, picture


def picture_of_nearest(
    samples: Tensor, real: Images, pairs: Mapping[str, tuple[Images, Images]], scores: Tensor
) -> Tensor:
    """Draw the samples (N,C,H,W) with the lowest scores (N,), and the real images nearest to them.

    pairs: samples and real images in "pixels" and in "features". Returns uint8 (C,H',W').
    """
    chosen = scores.argsort()[:LIKE_TRAINING]
    count = min(NEIGHBOURS, len(real))
    rows = {
        name: nearest(of_samples[chosen], of_real, count)[1]
        for name, (of_samples, of_real) in pairs.items()
    }
    return draw_neighbours(samples[chosen], real, rows["pixels"], rows["features"])


def sweep(
    extractor: FeatureExtractor,
    sets_of_plans: Iterable[tuple[SamplingPlan, list[tuple[Tensor, SampleCost]]]],
    real: RealImages,
) -> dict[str, Any]:
    """Frechet distance to the training images, and cost, for each of several sampling plans.

    sets_of_plans: each plan with its sets of samples, uint8 (N,C,H,W), and the cost of an image.
    """
    reference = real.features(extractor, "train")
    reference_statistics = statistics(reference)
    rows, shape = [], torch.Size()

    def distance(images: Tensor) -> float:
        features, _ = extract_features(extractor, images, "features", real.batch_size)
        return frechet(statistics(features), reference_statistics)

    for plan, sets in sets_of_plans:
        of_sets, shape = [distance(images) for images, _ in sets], sets[0][0].shape
        seconds = sum(cost.seconds for _, cost in sets) / len(sets)
        row = plan_settings(plan) | asdict(sets[0][1])
        rows.append(row | {"seconds": seconds, "frechet": mean_and_range(of_sets)})
    held_out = real.features(extractor, "test")[: shape[0]]
    return {
        "rows": rows,
        "train_images": len(reference),
        "floor": frechet(statistics(held_out), reference_statistics),
        "floor_images": len(held_out),
        "ceiling": distance(noise_images(shape[0], tuple(shape[1:]))),
    }
