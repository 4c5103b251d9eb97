"""The settings of a training run, and the record of how it was started."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffusion.settings import ModelSettings
from runtime.image_size import Size


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training run, made once from the flags of train.py.

    preset: the preset in use, never "auto".
    """

    preset: str

    # The data. image_size: None for the default of `DiffSet`. flip: mirror images at random; None
    # for what suits the dataset.
    dataset: str
    data_root: str
    image_size: Size | None
    value_range: tuple[float, float] | None
    flip: bool | None

    # The model, without what depends on the data: see `training.setup.complete_model_settings`.
    # dropout: None for the paper's choice: 0.1 on CIFAR-10 with the paper's preset, else 0.
    model: ModelSettings
    dropout: float | None
    class_conditional: bool

    # A step. batch_size: over all processes. accumulate: micro-batches in each process. clip: the
    # largest norm of the gradient, 0 for no limit.
    batch_size: int
    accumulate: int
    gradient_checkpointing: bool
    compile: str
    clip: float
    ema_decay: float
    posthoc_ema: bool

    # The run: its length (max_time in seconds), and the intervals of its events in steps.
    max_steps: int
    max_time: float | None
    val_every: int
    val_images: int
    save_every: int
    log_every: int
    eval_every: int
    eval_images: int

    # logger: the names in --logger. run_dir: None for runs/DATASET. resume: "auto", "none", a file
    # or a run directory. init_from: a model whose weights a new run begins with.
    logger: tuple[str, ...]
    run_dir: Path | None
    resume: str
    init_from: Path | None

    @classmethod
    def from_flags(cls, flags: dict[str, Any], preset: str) -> "TrainingSettings":
        """Make the settings from the flags of train.py.

        Each field, here and in `ModelSettings`, has the name of its flag.
        """
        from_data = {"dataset", "dropout"}
        names = {field.name for field in fields(ModelSettings)} - from_data
        model = ModelSettings(**{name: flags[name] for name in names & flags.keys()})
        names = {field.name for field in fields(cls)} - {"preset", "model"}
        return cls(preset=preset, model=model, **{name: flags[name] for name in names})

    @property
    def seed(self) -> int:
        return self.model.seed

    def check(self, world_size: int) -> None:
        """Raise ValueError with a one-line message if the settings contradict each other."""
        if self.model.condition and self.eval_every:
            raise ValueError(
                "--eval-every does not measure image-conditional models: leave it out, and run "
                "evaluate.py after training"
            )
        if self.model.clusters == 1:
            raise ValueError("--clusters 1 has only one cluster: give at least 2")
        if self.model.clusters and self.model.condition:
            raise ValueError("--clusters cannot be combined with --condition: leave out one")
        if self.model.clusters and self.model.label_dropout == 0:
            raise ValueError("--clusters needs --label-dropout above 0")
        if self.accumulate == 1:
            return
        if self.batch_size % (self.accumulate * world_size):
            processes = f" on each of {world_size} processes" if world_size > 1 else ""
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be split into --accumulate "
                f"{self.accumulate} equal parts{processes}: choose another number"
            )
        if self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"--compile {self.compile} uses CUDA graphs, which cannot add up the gradients "
                "of --accumulate: give --compile default"
            )


@dataclass(frozen=True)
class FixedSettings:
    """Settings that must stay the same when a run is resumed, besides those of the model.

    Checkpoints store them under the key "course". data: the digest of the training images.
    """

    data: str
    batch_size: int
    flip: bool
    clip: float
    ema_decay: float
    posthoc_ema: bool


@dataclass(frozen=True)
class Invocation:
    """How train.py was started, for the record in config.json.

    flags: all flags with their values.
    """

    command: list[str]
    flags: dict[str, Any]
