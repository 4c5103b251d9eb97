"""Score images made by any program against a dataset or another set of images.

    score(plan, machine)

Results are printed as soon as they are known and added to metrics.json in a folder beside the
images.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from Dataset import DiffSet
from evaluation import metrics
from evaluation.evaluation import (
    AUDITED,
    identify,
    measure_bound,
    measure_flow,
    print_model,
    publish,
)
from evaluation.features import FeatureExtractor, load_feature_extractor
from evaluation.image_sets import (
    METRICS_FILE,
    ImageSet,
    fit_to_dataset,
    fit_to_each_other,
    load_image_set,
    picture_name,
)
from evaluation.plan import ScoringPlan
from evaluation.preparation import (
    Prepared,
    check_split_sizes,
    choose_features,
    load_checkpoint,
    with_real_images,
)
from evaluation.real_images import RealImages
from evaluation.results import make_writable, read_records, write_image
from evaluation.set_comparison import distances_to_set, neighbours_in_set
from runtime.image_size import size_of
from runtime.launcher import Machine

FEW = 1000  # warn below this many samples, and below twice the number of features


@dataclass(frozen=True)
class Scoring:
    """Everything that is needed to score images.

    reference: another set of images to compare the samples with, None to compare them with
    `real_images`. real_images: a dataset; if there is a reference, it only selects the classifier
    that extracts the features, and may be None. model: a model whose bits/dim are measured too.
    """

    samples: ImageSet
    reference: ImageSet | None
    real_images: RealImages | None
    extractors: tuple[FeatureExtractor, ...]
    model: Prepared | None
    directory: Path


def score(plan: ScoringPlan, machine: Machine) -> dict[str, Any] | None:
    """Measure what the plan asks for, print a table and return the numbers, in the first process.

    Exits with status 2 if preparing fails; after that, errors are ValueError or OSError.
    """
    scoring = machine.prepare(lambda: prepare(plan, machine.device) if machine.is_first else None)
    machine.processes.leave()  # only the first process measures, and the others do not wait
    return measure(plan, scoring) if scoring else None


# ---- preparing -----------------------------------------------------------------------------------


def prepare(plan: ScoringPlan, device: torch.device) -> Scoring:
    """Load and check everything. Raises ValueError or OSError with a one-line message."""
    sets = [load_image_set(path) for path in plan.samples]
    directory = plan.out or folder_beside(plan.samples[0])
    check_directory(plan, directory)
    model, real, features = None, None, plan.features
    if plan.model:
        loaded = load_checkpoint(plan.model, plan.model.checkpoint, device)
        model = with_real_images(loaded)
        real, features = model.real_images, model.plan.features
    elif plan.dataset:
        real = load_dataset(plan, plan.dataset, sets[0])
        features = choose_features(features, real.train_set)
    if real:
        sets = [fit_to_dataset(one, real.train_set) for one in sets]
    if len(sets) == 2:
        sets = list(fit_to_each_other(*sets))
    make_writable([directory], "the results", "give an --out elsewhere")
    train_set, test_set = (real.train_set, real.test_set) if real else (None, None)
    root, weights = plan.data_root, plan.inception_weights
    extractors = [
        load_feature_extractor(name, train_set, test_set, root, device, weights)
        for name in features or ("efficientnet-lite0",)
    ]
    reference = sets[1] if len(sets) == 2 else None
    return Scoring(sets[0], reference, real, tuple(extractors), model, directory)


def load_dataset(plan: ScoringPlan, name: str, samples: ImageSet) -> RealImages:
    """Return the real images, in the size of the samples.

    Images in a folder are resized to that size, as for training, and shapes are drawn in it. Other
    datasets have a fixed size.
    Raises ValueError or OSError with a one-line message.
    """
    train_set = DiffSet(True, name, plan.data_root, size_of(*samples.images.shape[2:]))
    if train_set.original_size == (28, 28) and not train_set.padded:
        padded = DiffSet(True, name, plan.data_root, 32)
        train_set = padded if padded.padded else train_set
    original = "x".join(map(str, train_set.original_size))
    if not train_set.padded and samples.size != original:
        raise ValueError(
            f"{samples.path} has images of {samples.size}, and {train_set.name} of {original}: "
            f"write the samples in {original}"
        )
    test_set = DiffSet(False, name, plan.data_root, train_set.size)
    check_split_sizes(train_set, test_set)
    return RealImages(train_set, test_set, plan.data_root, plan.references, plan.batch_size)


def folder_beside(samples: Path) -> Path:
    """Return the folder of the results: NAME-evaluation beside the samples, never among them."""
    if samples.name in ("", ".."):
        samples = samples.resolve()
    name = samples.name if samples.is_dir() else samples.stem
    return samples.parent / f"{name}-evaluation"


def check_directory(plan: ScoringPlan, directory: Path) -> None:
    """Raise ValueError if results would be mistaken for samples, or mixed with those of a model."""
    for samples in plan.samples:
        if samples.is_dir() and directory.resolve().is_relative_to(samples.resolve()):
            raise ValueError(
                f"the results in {directory} would be inside the folder of samples {samples}: "
                "give another --out"
            )
    records = read_records(directory / METRICS_FILE)
    if any("samples_digest" not in record for record in records):
        raise ValueError(f"{directory / METRICS_FILE} belongs to a model: give another --out")


# ---- measuring -----------------------------------------------------------------------------------


def measure(plan: ScoringPlan, scoring: Scoring) -> dict[str, Any]:
    """Print the comparison and results, and return them. Raises OSError or ValueError with a
    one-line message."""
    samples = scoring.samples
    identity = identify_images(scoring)
    if scoring.model:
        identity = identify(scoring.model) | identity
        print_model(scoring.model, identity)
    other = scoring.reference.path if scoring.reference else identity["dataset"]
    print(f"{len(samples)} images of {samples.path} against {other}", flush=True)
    if warning := warning_of_few(scoring):
        print(warning, file=sys.stderr)
    return publish(scoring.directory / METRICS_FILE, identity, measurements(plan, scoring))


def warning_of_few(scoring: Scoring) -> str:
    """A line about the bias of the Frechet distance if the images are few, or ""."""
    count = len(scoring.samples)
    names = [one.name for one in scoring.extractors if count < max(FEW, 2 * one.network.size)]
    if not names:
        return ""
    remedy = f"compare it only with the distance of another set of {count} images"
    if not scoring.reference:
        remedy = 'compare it with that in the column "real images", which has the same bias'
    return (
        f"warning: {count} images are few, so their Frechet distance in features of "
        f"{', '.join(names)} is biased upward: {remedy}"
    )


def identify_images(scoring: Scoring) -> dict[str, Any]:
    """Return what identifies the compared images in metrics.json."""
    samples, reference, real = scoring.samples, scoring.reference, scoring.real_images
    identity: dict[str, Any] = {
        "samples": str(samples.path),
        "samples_digest": samples.digest(),
    }
    if reference:
        identity["reference"] = str(reference.path)
        identity["reference_digest"] = reference.digest()
    if real:
        identity["dataset"] = real.train_set.name
        identity["size"] = real.train_set.size
        identity["train_digest"] = real.train_set.digest()
        identity["test_digest"] = real.test_set.digest()
    return identity


def measurements(plan: ScoringPlan, scoring: Scoring) -> Iterator[dict[str, Any]]:
    """Yield the results part by part, as dictionaries for metrics.json."""
    if scoring.model:
        yield from measure_bound(scoring.model)
    for extractor in scoring.extractors:
        if scoring.reference:
            yield from compare_sets(plan, scoring, extractor, scoring.reference)
        elif scoring.real_images:
            yield from compare_with_dataset(scoring, extractor, scoring.real_images)
    if scoring.model:  # last, because only this can fail
        yield from measure_flow(scoring.model)


def compare_with_dataset(
    scoring: Scoring, extractor: FeatureExtractor, real: RealImages
) -> Iterator[dict[str, Any]]:
    """Yield distances and memorization."""
    samples = scoring.samples
    distances = metrics.distances(extractor, [samples.images], real, samples.labels)
    yield {"distances": {extractor.name: {"samples": str(samples.path)} | distances}}
    audit, picture = metrics.memorization(extractor, samples.images[:AUDITED], real)
    file = scoring.directory / picture_name(extractor.name)
    write_image(file, picture)
    yield {"memorization": {extractor.name: audit | {"picture": str(file)}}}


def compare_sets(
    plan: ScoringPlan, scoring: Scoring, extractor: FeatureExtractor, reference: ImageSet
) -> Iterator[dict[str, Any]]:
    """Yield distances and nearest neighbours."""
    samples, root, batch_size = scoring.samples, plan.data_root, plan.batch_size
    distances = distances_to_set(extractor, samples, reference, root, batch_size)
    yield {"distances": {extractor.name: {"samples": str(samples.path)} | distances}}
    audit, picture = neighbours_in_set(extractor, samples, reference, root, AUDITED, batch_size)
    file = scoring.directory / picture_name(extractor.name)
    write_image(file, picture)
    yield {"neighbours": {extractor.name: audit | {"picture": str(file)}}}
