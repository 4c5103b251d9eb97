"""Compare two sets of images with each other; results are dictionaries for metrics.json.

    distances_to_set(extractor, samples, reference, root="data")
    neighbours_in_set(extractor, samples, reference, root="data")    # and an image of them

The reference set has no held-out split, so no distance has a floor.

Letters in the shape columns: N images, C channels, H and W height and width.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.distances import inception_score
from evaluation.features import FeatureExtractor, cached_features, extract_features
from evaluation.image_sets import ImageSet
from evaluation.metrics import (
    describe,
    distances_from,
    extract_samples,
    mean_and_range,
    picture_of_nearest,
)
from evaluation.neighbours import audit_pair
from runtime.progress_bar import progress_bar


def set_features(
    extractor: FeatureExtractor, images: ImageSet, root: str | Path, batch_size: int
) -> Tensor:
    """Features (N,F) of all images of a set, cached in `root`."""
    digest = images.digest()
    return cached_features(extractor, images.images, images.name, digest, root, batch_size)


def distances_to_set(
    extractor: FeatureExtractor,
    samples: ImageSet,
    reference: ImageSet,
    root: str | Path,
    batch_size: int = 100,
) -> dict[str, Any]:
    """Distances of samples, and of the same number of noise images, from a reference set."""
    extracted = extract_samples(extractor, [samples.images], batch_size)
    reference_features = set_features(extractor, reference, root, batch_size)
    measured = describe(extractor, extracted)
    title = f"distances, {extractor.name}"
    with progress_bar(title=title, total=2, unit=" sets", leave=False) as bar:
        measured["to_reference"] = distances_from(extracted, reference_features, None, bar)
    if extractor.name == "inception":
        score = mean_and_range([inception_score(logits) for logits in extracted.logits])
        measured["inception_score"] = score | {"ceiling": inception_score(extracted.noise_logits)}
    if extractor.accuracy is not None:
        measured["accuracy"] = extractor.accuracy
    return measured


def neighbours_in_set(
    extractor: FeatureExtractor,
    samples: ImageSet,
    reference: ImageSet,
    root: str | Path,
    count: int,
    batch_size: int = 100,
) -> tuple[dict[str, Any], Tensor]:
    """`neighbours.audit_pair` of the first `count` samples, in pixels and in features.

    Also returns a picture, uint8 (C,H',W'), of the samples nearest to a reference image in feature
    space.
    """
    images = samples.images[:count]
    features, _ = extract_features(extractor, images, batch_size=batch_size)
    compared = {
        "pixels": (images.flatten(1), reference.images.flatten(1)),
        "features": (features, set_features(extractor, reference, root, batch_size)),
    }
    audits, distances = {}, {}
    title = f"nearest neighbours, {extractor.name}"
    for name in progress_bar(compared, title, unit=" audits", leave=False):
        audits[name], distances[name] = audit_pair(*compared[name])
    picture = picture_of_nearest(images, reference.images, compared, distances["features"])
    return {"images": len(images), "reference_images": len(reference), **audits}, picture
