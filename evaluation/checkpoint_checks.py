"""Checks of a run's newest checkpoint: readable, finite weights, an EMA over enough steps."""

from pathlib import Path

import torch

from checkpoints.checkpoint import read_checkpoint
from checkpoints.run_dir import newest_checkpoint
from evaluation.finding import Finding

MIN_UPDATES = 1000  # of the EMA


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
        advice = "try an older checkpoint, resume training, or start again"
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
            f"it covers only about the last {max(1, updates // 9)} steps; "
            "train longer before judging the samples",
        ),
    ]
