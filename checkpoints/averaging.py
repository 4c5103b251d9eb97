"""Post-hoc EMA: weights averaged over a length that is chosen after training.

    weights = average_weights(read_checkpoint("runs/cifar10/..."), 0.08, model)

See `posthoc_ema` for the mathematics.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import posthoc_ema
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import step_of
from checkpoints.validation import check_weights
from DiffusionModel import DiffusionModel

LARGEST_ERROR = 0.3  # of a combined profile, relative to the norm of the target profile


def average_weights(
    checkpoint: dict[str, Any], length: float, model: DiffusionModel
) -> dict[str, Tensor]:
    """The network's weights averaged over the training up to this checkpoint.

    length: relative standard deviation of the averaging profile, see `posthoc_ema.gamma`.

    The weights are combined from the two averages in the checkpoint and the snapshots in averages/
    of its run directory. Prints the approximation error on standard error, and raises ValueError if
    it is too large.
    """
    path, step = checkpoint["path"], checkpoint["global_step"]
    if not checkpoint["course"].get("posthoc_ema"):
        raise ValueError(
            f"{path} holds no averages to combine: "
            "train with --posthoc-ema, or leave out --ema-length"
        )
    files = snapshot_files(path.parent.parent / "averages", step)
    factors = combination_factors([*map(step_of, files), step], length)
    remaining = iter(factors)

    expected = model.unet.state_dict()
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in expected.items()}
    for file in [*files, path]:
        averages: Any = checkpoint.get("power") if file == path else read_snapshot(file)
        check_averages(file, averages, expected)
        for weights in averages:
            factor = next(remaining)
            for name, value in weights.items():
                total[name] += factor * value.double()
    return {name: value.float() for name, value in total.items()}


def snapshot_files(folder: Path, step: int) -> list[Path]:
    """The snapshots in this folder before `step`, oldest first."""
    files = sorted(folder.glob("step_*.ckpt"))
    return [file for file in files if "step_00000000" < file.stem < f"step_{step:08d}"]


def combination_factors(steps: list[int], length: float) -> list[float]:
    """The factor of each average at each of these steps, of which the last is the checkpoint's."""
    exponents = [posthoc_ema.gamma(kept) for kept in posthoc_ema.LENGTHS]
    snapshots = [(step, exponent) for step in steps for exponent in exponents]
    target = (steps[-1], posthoc_ema.gamma(length))
    factors, error = posthoc_ema.combination(snapshots, target)
    summary = (
        f"an average over {length:g} of the training, combined from {len(steps)} snapshots with "
        f"an error of {100 * error:.1f}%"
    )
    if error > LARGEST_ERROR:
        raise ValueError(
            f"{summary}: choose a length nearer to 0.05 or 0.1, or train with a smaller "
            "--save-every"
        )
    print(summary, file=sys.stderr)
    return factors.tolist()


def read_snapshot(file: Path) -> Any:
    contents = read_checkpoint_file(file)
    return contents.get("weights") if isinstance(contents, dict) else contents


def check_averages(file: Path, averages: Any, expected: dict[str, Tensor]) -> None:
    """Raise ValueError, in one line, unless these are averages of the `expected` weights."""
    if type(averages) is not list or len(averages) != len(posthoc_ema.LENGTHS):
        raise ValueError(f"{file} must hold {len(posthoc_ema.LENGTHS)} averages: remove it")
    for weights in averages:
        check_weights(weights, expected)
