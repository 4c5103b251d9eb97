"""The settings of Inference.py. This module does not import torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageRequest:
    """The images to generate, as requested by the flags of Inference.py; None for a missing flag
    without a fixed default.

    T, schedule: the forward process, used without a checkpoint.
    """

    checkpoint: Path | None = None
    ema: bool = True
    ema_length: float | None = None
    num: int | None = None
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    evaluations: int | None = None
    grid: str = "uniform"
    eta: float = 0.0
    variance: str | None = None
    label: str | None = None
    guidance: float | None = None
    guide_with: str | None = None
    guidance_interval: tuple[float, float] | None = None
    input_image: Path | None = None
    T: int = 1000
    schedule: str = "linear"
    start_step: int | None = None
    mask: Path | None = None
    interpolate: tuple[Path, Path] | None = None
    condition_image: Path | None = None
    out: Path = Path("samples")
    save_steps: tuple[int, ...] | None = None
    frames: int = 50
    batch_size: int = 64
    precision: str = "32"  # "32", "tf32" or "bf16"

    @property
    def without_class(self) -> bool:
        """Whether --class is "none", in upper or lower case."""
        return (self.label or "").lower() == "none"
