"""A model that was read from a file, and what is known about that file."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints.early_average import EarlyAverage
from DiffusionModel import DiffusionModel


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to sample.

    path: the file or folder that it was read from; sha256: of what was read; step: training steps
    taken, 0 if unknown; trained_on: the `DiffSet.digest` of the training images, "" if unknown;
    early: what guides the model, if the file holds it.
    """

    model: DiffusionModel
    path: Path
    sha256: str
    step: int
    trained_on: str
    early: EarlyAverage | None = None
