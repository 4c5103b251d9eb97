"""Early averages of a run's weights, for autoguidance.

Autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself") guides a
model with a worse version of itself. A checkpoint therefore keeps the averaged weights of one or
two early steps in half precision, under the key "early": {step: weights}. The steps are powers of
two, so a resumed run keeps the same steps.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from checkpoints.validation import check_early_averages

FIRST_STEP = 16  # earlier averages are not kept


@dataclass(frozen=True)
class EarlyAverage:
    """The averaged weights (float32, by their names in the network) after `step` steps."""

    step: int
    weights: dict[str, Tensor]


def is_early_step(step: int) -> bool:
    """Whether the average of this step is kept: it must be a power of two, and at least 16."""
    return step >= FIRST_STEP and step & (step - 1) == 0


def guiding_step(step: int) -> int:
    """The step whose average guides a model of `step` steps: the largest power of two that is at
    most `step` / 2, and at least 1."""
    return 1 << max(0, (step // 2).bit_length() - 1)


def half_precision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().half().cpu() for name, value in weights.items()}


def read_early_average(checkpoint: dict[str, Any]) -> EarlyAverage | None:
    """The average that guides the model of a checkpoint, or None if the checkpoint has none.

    Raises ValueError, in one line, if it does not fit the network.
    """
    averages = checkpoint.get("early", {})
    check_early_averages(averages, checkpoint["ema"]["weights"])
    step = guiding_step(checkpoint["global_step"])
    if step not in averages:
        return None
    return EarlyAverage(step, {name: value.float() for name, value in averages[step].items()})
