"""Load and check everything that an evaluation needs before sampling begins.

prepared, path = prepare(plan, "runs/mnist", processes)    # in every process
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.checkpoint import load_model
from checkpoints.loaded_model import LoadedModel
from checkpoints.run_dir import read_run_settings, run_dir_of
from Dataset import DiffSet, load_dataset
from DiffusionModel import DiffusionModel
from evaluation.features import FeatureExtractor, load_feature_extractor
from evaluation.plan import EvaluationPlan
from evaluation.real_images import RealImages
from evaluation.results import make_writable
from runtime.pretrained import is_pretrained
from runtime.processes import Processes
from sampling.guidance import choose_guidance
from sampling.plan import SamplingPlan, plan_sampling
from sampling.sample_sets import SampleCost, folder_name, read_samples
from sampling.samplers import SAMPLERS

SWEEP_STEPS = (5, 10, 20, 50)  # of a sweep over steps, if --steps is not given
MIN_IMAGES = 4  # of each split
BOUND_IMAGES = 1000  # for the variational bound, or all if there are fewer


@dataclass(frozen=True)
class Prepared:
    """Everything that an evaluation needs.

    weights: the name of the weights in metrics.json. directory: where the results are written.
    real_images, extractors: only in the first process, which measures; the others only sample.
    """

    plan: EvaluationPlan
    loaded: LoadedModel
    weights: str
    directory: Path
    sampling_plans: tuple[SamplingPlan, ...]
    real_images: RealImages | None = None
    extractors: tuple[FeatureExtractor, ...] = ()

    @property
    def model(self) -> DiffusionModel:
        return self.loaded.model

    def sample_folder(self, sampling_plan: SamplingPlan) -> Path:
        """Where the samples of a plan are written."""
        device = self.model.device.type
        name = folder_name(sampling_plan, self.loaded.sha256, self.weights, device)
        return self.directory / "evaluation" / name

    def read_sets(self, sampling_plan: SamplingPlan) -> list[tuple[Tensor, SampleCost]]:
        """The samples of each seed, uint8 (N,C,H,W), and the cost of one sample."""
        folder, count = self.sample_folder(sampling_plan), self.plan.num
        return [read_samples(self.model, folder, count, seed) for seed in self.plan.seeds]


def prepare(plan: EvaluationPlan, path: Path, processes: Processes) -> tuple[Prepared, Path]:
    """Load and check everything; also returns the path for the other processes to load.

    path: `plan.checkpoint` in the first process. Raises ValueError or OSError with a one-line
    message.
    """
    prepared = load_checkpoint(plan, path, processes.device)
    if processes.is_first:
        prepared = with_real_images(prepared)
        check_writable(prepared.directory)
        prepared = with_extractors(prepared, processes.device)
    return prepared, prepared.loaded.path


def load_checkpoint(plan: EvaluationPlan, path: Path, device: torch.device) -> Prepared:
    """Load the model and choose how to sample. Raises ValueError or OSError with a one-line
    message."""
    loaded = load_model(path, device, plan.weights == "ema", plan.ema_length)
    check_condition_flags(plan, loaded.model.settings.condition)
    weights = plan.weights
    if plan.ema_length is not None:
        weights = f"ema of length {plan.ema_length:g}"
    return Prepared(
        plan=plan,
        loaded=loaded,
        weights=weights,
        directory=results_directory(plan.checkpoint),
        sampling_plans=sampling_plans(plan, loaded),
    )


def check_condition_flags(plan: EvaluationPlan, condition: str) -> None:
    """Raise ValueError if the model is image-conditional and the plan has settings that do not
    apply to such a model."""
    asked = {
        "--bound": plan.bound,
        "--flow": plan.flow,
        "--sweep": plan.sweep,
        "--features": plan.features,
        "--references": plan.references,
        "--compile": plan.compile_mode != "off",
    }
    for flag, value in asked.items():
        if condition and value:
            raise ValueError(
                f"{flag} does not apply to an image-conditional model ({condition}): leave it out"
            )
    if condition and not plan.num:  # also with --samples, for which num is 0
        raise ValueError(
            f"an image-conditional model ({condition}) is measured by its samples alone: leave out "
            "--samples and --num 0"
        )


def results_directory(checkpoint: Path) -> Path:
    """Return where results go: the run directory, the folder of a file, or runs/pretrained-NAME."""
    if is_pretrained(checkpoint):
        return Path("runs") / f"pretrained-{checkpoint.stem}"
    return run_dir_of(checkpoint) if checkpoint.is_dir() else checkpoint.parent


def sampling_plans(plan: EvaluationPlan, loaded: LoadedModel) -> tuple[SamplingPlan, ...]:
    """Return the plan, or all plans of a sweep. Raises ValueError with a one-line message."""
    model = loaded.model
    guidance_of = partial(
        choose_guidance, loaded, plan.guidance, plan.guide_with, bool(model.unet.classes)
    )
    samplers: tuple[str | None, ...] = (None,)
    steps: tuple[int | None, ...] = (None,)
    if "sampler" in plan.sweep:
        samplers = SAMPLERS
    if "steps" in plan.sweep:
        steps = tuple(count for count in SWEEP_STEPS if count <= model.T)
    plans = [
        plan_sampling(
            model,
            sampler,
            steps=count,
            evaluations=plan.evaluations,
            grid=plan.grid,
            variance=plan.variance,
            eta=plan.eta,
            guidance=scale,
            guide=guide,
            precision=plan.precision,
            compile_mode=plan.compile_mode,
        )
        for sampler in plan.samplers or samplers
        for scale, guide in [guidance_of(sampler)]
        for count in plan.steps or steps
    ]
    if not plans:
        raise ValueError(
            f"--sweep steps: the model has {model.T} steps, fewer than the smallest default, "
            f"{min(SWEEP_STEPS)}: give --steps"
        )
    if plan.compile_mode != "off" and len({one.guidance != 1 for one in plans}) > 1:
        raise ValueError(
            "--compile does not go with this --sweep, in which ddpm has no guidance and the other "
            "samplers have: leave it out, or give --guidance"
        )
    return tuple(plans)


def with_real_images(prepared: Prepared) -> Prepared:
    """Load and check the real images.

    Defaults that depend on the images are filled in. Raises ValueError or OSError with a one-line
    message.
    """
    train_set, test_set = load_real_images(prepared)
    check_labels(prepared.model, train_set, test_set)
    plan = prepared.plan
    if plan.bound is None:
        plan = replace(plan, bound=min(BOUND_IMAGES, len(test_set)))
    check_counts(plan, train_set, test_set)
    plan = replace(plan, features=features_of(plan, prepared.model, train_set))
    real_images = RealImages(train_set, test_set, plan.data_root, plan.references, plan.batch_size)
    return replace(prepared, plan=plan, real_images=real_images)


def features_of(plan: EvaluationPlan, model: DiffusionModel, train_set: DiffSet) -> tuple[str, ...]:
    """The names of the feature extractors. The samples of an image-conditional model are compared
    with the originals in the features of a classifier, if the images have labels."""
    if not model.settings.condition:
        return choose_features(plan.features, train_set)
    return ("classifier",) if len(train_set.classes) > 1 and not train_set.paired else ()


def choose_features(features: tuple[str, ...], train_set: DiffSet) -> tuple[str, ...]:
    """The names of the feature extractors; by default the one that suits the dataset.

    Raises ValueError for a classifier of a dataset without labels.
    """
    labelled = len(train_set.classes) > 1
    if not features:
        return ("classifier" if labelled else "efficientnet-lite0",)
    if "classifier" in features and not labelled:
        raise ValueError(
            f"{train_set.name} has no labels, and a classifier needs some: "
            "give --features efficientnet-lite0"
        )
    return features


def with_extractors(prepared: Prepared, device: torch.device) -> Prepared:
    """Load the feature extractors, which may train a classifier. Raises ValueError or OSError."""
    assert prepared.real_images
    plan, real = prepared.plan, prepared.real_images
    root, weights = plan.data_root, plan.inception_weights
    extractors = [
        load_feature_extractor(name, real.train_set, real.test_set, root, device, weights)
        for name in (plan.features if plan.num else ())
    ]
    return replace(prepared, extractors=tuple(extractors))


def load_real_images(prepared: Prepared) -> tuple[DiffSet, DiffSet]:
    """Return the training and test images of --dataset, by default those of the training run."""
    plan, model = prepared.plan, prepared.model
    config = read_run_settings(results_directory(plan.checkpoint))
    name = plan.dataset or config.get("dataset") or model.settings.dataset
    if not name:
        raise ValueError(
            f"{plan.checkpoint} does not say which images it was trained on: give --dataset"
        )
    # The value range of the run applies only to the images of the run.
    value_range = None if plan.dataset else config.get("value_range")
    train_set, test_set = (
        load_dataset(
            train, name, plan.data_root, model.unet.size, value_range, model.settings.condition
        )
        for train in (True, False)
    )
    if test_set.depth != model.unet.depth:
        raise ValueError(
            f"{test_set.name} has {test_set.depth} channels, and the model {model.unet.depth}: "
            "give the --dataset that it was trained on"
        )
    if test_set.paired and test_set.paired != model.unet.condition_depth:
        raise ValueError(
            f"the inputs of {test_set.name} have {test_set.paired} channels, and those of the "
            f"model {model.unet.condition_depth}: give the --dataset that it was trained on"
        )
    return train_set, test_set


def check_labels(model: DiffusionModel, train_set: DiffSet, test_set: DiffSet) -> None:
    """Raise ValueError if a label is not among the classes of the model."""
    highest = max(int(test_set.labels.max()), int(train_set.labels.max()))
    if model.settings.uses_labels and highest >= model.unet.classes:
        raise ValueError(
            f"{test_set.name} has the label {highest}, and the model has "
            f"{model.unet.classes} classes: give the --dataset that it was trained on"
        )


def check_counts(plan: EvaluationPlan, train_set: DiffSet, test_set: DiffSet) -> None:
    """Raise ValueError if there are too few images."""
    for flag, count in (("--bound", plan.bound or 0), ("--flow", plan.flow)):
        if count > len(test_set):
            raise ValueError(
                f"{flag} {count} is more than the {len(test_set)} unseen images of {test_set.name}"
            )
    check_split_sizes(train_set, test_set)


def check_split_sizes(train_set: DiffSet, test_set: DiffSet) -> None:
    """Raise ValueError if a split has too few images for a comparison."""
    if min(len(train_set), len(test_set)) < MIN_IMAGES:
        raise ValueError(
            f"{train_set.name} has {len(train_set)} images for training and {len(test_set)} "
            f"unseen ones: at least {MIN_IMAGES} of each are needed"
        )


def check_writable(directory: Path) -> None:
    """Raise OSError with a one-line message, before sampling, if results cannot be written."""
    make_writable(
        [directory, directory / "evaluation"],
        "metrics.json and the samples",
        "copy the checkpoint elsewhere",
    )
