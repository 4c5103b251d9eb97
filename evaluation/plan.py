"""What is measured, as objects that evaluate.py makes from its flags."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluationPlan:
    """The settings of an evaluation.

    None, or no values, stand for a default that depends on the model or the data.

    checkpoint: a file, or a run directory for its newest. weights: "ema" or "raw"; ema_length: the
    length of another average. dataset: the name of the real images. data_root: where datasets,
    classifiers and features are stored. sweep: what varies, "sampler", "steps" or both.

    bound, flow: how many held-out images the variational bound and the probability flow are
    measured on. terms: how many terms of the bound are sampled for each image, None for all.

    num: samples in each set, one set for each of `seeds`; the first seed is also that of bits/dim.
    samplers .. guide_with: how they are sampled. compile_mode: of torch.compile, or "off".

    features: the names of the feature extractors. inception_weights: a file. references: how many
    real images of each split samples are compared with. batch_size: images at once. precision:
    Lightning's name, for sampling.
    """

    checkpoint: Path
    weights: str
    ema_length: float | None
    dataset: str | None
    data_root: str
    sweep: tuple[str, ...]
    bound: int | None
    terms: int | None
    flow: int
    num: int
    seeds: tuple[int, ...]
    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    grid: str
    eta: float
    variance: str | None
    guidance: float | None
    guide_with: str | None
    features: tuple[str, ...]
    inception_weights: Path | None
    references: int | None
    batch_size: int
    precision: str
    compile_mode: str


@dataclass(frozen=True)
class ScoringPlan:
    """The settings with which images in files are scored.

    samples: a folder or an .npz file, and perhaps another one to compare it with. dataset,
    data_root, features, inception_weights, references, batch_size: as of `EvaluationPlan`. out: the
    folder of the results, None for one beside the samples. model: what is measured of a model
    besides; its `num` is 0.
    """

    samples: tuple[Path, ...]
    dataset: str | None
    data_root: str
    features: tuple[str, ...]
    inception_weights: Path | None
    references: int | None
    batch_size: int
    out: Path | None = None
    model: EvaluationPlan | None = None
