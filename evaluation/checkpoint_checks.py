"""Checks of a run's newest checkpoint: readable, finite, and averaged for long enough."""

from pathlib import Path

import torch

from checkpoints.checkpoint import read_checkpoint
from checkpoints.run_dir import newest_checkpoint
from evaluation.finding import Finding

MIN_UPDATES = 1000  # of the average of the weights


def check_checkpoint(run_dir: Path) -> list[Finding]:
    """Findings about the newest checkpoint."""
    try:
        checkpoint = read_checkpoint(newest_checkpoint(run_dir) or run_dir / "checkpoints")
        average, raw = checkpoint["ema"]["weights"], checkpoint["state_dict"]
        weights = [*average.values(), *raw.values()]
        finite = all(bool(torch.isfinite(value).all()) for value in weights)
        updates = int(checkpoint["ema"]["n"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        observation = " ".join(str(error).split())[:200]
        advice = "an older one may be sound; train on, or anew"
        return [Finding("checkpoint", False, observation, advice)]
    return [
        Finding(
            "weights",
            finite,
            "all finite" if finite else "some are not finite",
            "try a smaller --lr, or --precision 32",
        ),
        Finding(
            "EMA",
            updates >= MIN_UPDATES,
            f"an average over {updates} updates",
            f"it is young: it reaches over its last {max(1, updates // 9)} steps or so; "
            "train longer before judging the samples",
        ),
    ]
