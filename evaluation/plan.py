"""The settings of evaluations, which evaluate.py makes from its flags."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluationPlan:
    """The settings of an evaluation.

    None or an empty tuple means a default that depends on the model or the data.

    checkpoint: a file, or a run directory for its newest checkpoint. weights: "ema" or "raw".
    ema_length: the length of a post-hoc EMA to use instead, or None. dataset: the name of the real
    images. data_root: where datasets, classifiers and features are stored. sweep: what varies,
    "sampler", "steps" or both.

    bound, flow: number of held-out images for the variational bound and for the probability flow.
    terms: number of terms of the bound sampled for each image, None for all.

    num: samples in each set; there is one set for each of `seeds`, and bits/dim uses the first
    seed. samplers .. guide_with: how to sample. compile_mode: mode of torch.compile, or "off".

    features: the names of the feature extractors. inception_weights: a file. references: number of
    real images of each split that samples are compared with. batch_size: images in a batch.
    precision: that of sampling: "32", "tf32" or "bf16".
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
    evaluations: int | None
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
    """The settings for scoring images from files.

    samples: a folder or an .npz file, and optionally a second one to compare it with. dataset,
    data_root, features, inception_weights, references, batch_size: as in `EvaluationPlan`. out: the
    folder of the results, None for one beside the samples. model: the evaluation of a model whose
    bits/dim are measured too; its `num` is 0.
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
