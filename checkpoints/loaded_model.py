"""A model read from a file, and information about that file."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints.early_average import EarlyAverage
from DiffusionModel import DiffusionModel


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to sample.

    path: the file or folder that was read. sha256: of that file, or of the folder's files.
    step: the number of training steps, 0 if unknown. trained_on: the `DiffSet.digest` of the
    training images, "" if unknown. early: the early average for autoguidance, if the file has one.
    """

    model: DiffusionModel
    path: Path
    sha256: str
    step: int
    trained_on: str
    early: EarlyAverage | None = None
