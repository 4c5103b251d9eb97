"""Set up a training run: data, model, batches and, for --eval-every, a feature extractor."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from Dataset import Batches, DiffSet, load_dataset
from diffusion.conditions import check_condition, condition_channels
from diffusion.settings import ModelSettings, check_settings, read_schedule
from DiffusionModel import DiffusionModel
from evaluation.features import FeatureExtractor, load_feature_extractor, reference_features
from image_data.clusters import find_centres, nearest_centres
from runtime.flags import flag_of
from runtime.image_size import Size, height_and_width
from runtime.launcher import Machine
from training.initial_weights import model_from, new_model
from training.settings import FixedSettings, TrainingSettings
from Unet import check_sizes

CLUSTERED = 20_000  # training images that the centres of clusters are computed from


@dataclass(frozen=True)
class Reference:
    """A feature extractor, and the features (N,F) of the training images."""

    extractor: FeatureExtractor
    features: Tensor


@dataclass(frozen=True)
class TrainingRun:
    """A training run before its first step: settings, data, model and batches.

    about_weights: a line about the initial weights, empty if they are random.
    """

    settings: TrainingSettings
    fixed: FixedSettings
    run_dir: Path
    data: DiffSet
    unseen: DiffSet
    model_settings: ModelSettings
    model: DiffusionModel
    about_weights: str
    batches: Batches
    validation: Batches
    reference: Reference | None


def set_up(settings: TrainingSettings, machine: Machine, evaluate: bool = False) -> TrainingRun:
    """Load the data and build the model.

    evaluate: also load what --eval-every needs. Raises ValueError or OSError with a one-line
    message.
    """
    if settings.image_size is not None:
        check_image_size(settings.image_size, settings.model)  # before decoding a folder of images
    settings.check(machine.processes.world_size)
    data = load_data(settings, True, settings.image_size)
    unseen = load_data(settings, False, data.size)
    flip = data.flip if settings.flip is None else settings.flip
    reference = None
    if evaluate and settings.eval_every and machine.is_first and len(data.classes) > 1:
        reference = load_reference(settings, data, unseen, machine.device)
    if settings.model.clusters:
        label_by_cluster(data, unseen, settings.model.clusters)
    model_settings = complete_model_settings(settings, data)
    serve = partial(
        Batches,
        batch_size=settings.batch_size,
        device=machine.device,
        rank=machine.processes.global_rank,
        world_size=machine.processes.world_size,
    )
    run_dir = settings.run_dir or Path("runs") / data.name
    if settings.init_from and settings.init_from.resolve().is_relative_to(run_dir.resolve()):
        raise ValueError(
            f"--init-from {settings.init_from} is in the run directory {run_dir}: "
            "choose another --run-dir"
        )
    model, about_weights = initial_model(settings, model_settings)
    return TrainingRun(
        settings=settings,
        fixed=fixed_settings(settings, data, flip),
        run_dir=run_dir,
        data=data,
        unseen=unseen,
        model_settings=model.settings,
        model=model,
        about_weights=about_weights,
        batches=serve(data, seed=settings.seed, flip=flip),
        validation=serve(unseen, shuffle=False, limit=settings.val_images),
        reference=reference,
    )


def load_data(settings: TrainingSettings, train: bool, image_size: Size | None) -> DiffSet:
    return load_dataset(
        train,
        settings.dataset,
        settings.data_root,
        image_size,
        settings.value_range,
        settings.model.condition,
    )


def check_image_size(size: Size, model: ModelSettings) -> None:
    """Raise ValueError with a one-line message if the network does not accept this image size."""
    names = ("width", "mults", "patch")
    check_settings({"size": size, **{name: getattr(model, name) for name in names}}, flag_of)
    check_sizes(size, model.width, model.patch, len(model.mults), flag_of("size"))


def complete_model_settings(settings: TrainingSettings, data: DiffSet) -> ModelSettings:
    """Fill in the settings of the model that depend on the data, and check them all."""
    dropout = settings.dropout
    if dropout is None:
        dropout = 0.1 if data.name == "cifar10" and settings.preset == "paper" else 0.0
    clusters = settings.model.clusters
    conditional = clusters > 0 or (settings.class_conditional and len(data.classes) > 1)
    shares: tuple[float, ...] = ()
    if clusters:
        shares = tuple((torch.bincount(data.labels, minlength=clusters) / len(data)).tolist())
    condition = settings.model.condition
    check_settings({"condition": condition}, flag_of)
    check_condition(condition, data.depth, *height_and_width(data.size))
    model = replace(
        settings.model,
        dropout=dropout,
        depth=data.depth,
        condition_depth=condition_channels(condition, data.depth, data.paired),
        size=data.size,
        dataset=data.name,
        class_names=data.classes,
        classes=len(data.classes) if conditional else 0,
        cluster_shares=shares,
    )
    model = read_schedule(model)
    check_settings(asdict(model), flag_of)
    check_image_size(model.size, model)
    return model


def label_by_cluster(data: DiffSet, unseen: DiffSet, count: int) -> None:
    """Replace the labels of both splits by clusters of the training images. Raises ValueError."""
    check_settings({"clusters": count}, flag_of)
    if count > len(data):
        raise ValueError(
            f"--clusters {count} is more than the {len(data)} images of {data.name}: "
            f"choose at most {len(data)}"
        )
    centres = find_centres(data.images[data.subset(CLUSTERED)], count)
    names = tuple(f"cluster {i}" for i in range(count))
    for split in (data, unseen):
        split.relabel(nearest_centres(split.images, centres), names)


def initial_model(settings: TrainingSettings, model: ModelSettings) -> tuple[DiffusionModel, str]:
    """Return the model before its first step, and a line about its weights, "" for random ones."""
    if settings.init_from:
        return model_from(model, settings.init_from)
    return new_model(model), ""


def fixed_settings(settings: TrainingSettings, data: DiffSet, flip: bool) -> FixedSettings:
    return FixedSettings(
        data=data.digest(),
        batch_size=settings.batch_size,
        flip=flip,
        clip=settings.clip,
        ema_decay=settings.ema_decay,
        posthoc_ema=settings.posthoc_ema,
    )


def load_reference(
    settings: TrainingSettings, data: DiffSet, unseen: DiffSet, device: torch.device
) -> Reference:
    """Return a classifier as feature extractor; it is trained first if it is not on disk."""
    root = settings.data_root
    extractor = load_feature_extractor("classifier", data, unseen, root, device)
    return Reference(extractor, reference_features(extractor, data, root))
