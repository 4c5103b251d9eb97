"""Checks of the losses in metrics.csv: finite, falling, and near those of similar runs."""

import contextlib
import math
from pathlib import Path
from typing import Any

from checkpoints.run_dir import read_run_settings
from evaluation.finding import Finding
from evaluation.metrics_csv import read_rows

RECENT = 20  # number of logged losses in the mean of the latest losses
MAX_GAP = 1.25  # validation loss divided by training loss
MAX_RISE = 1.1  # validation loss divided by the lowest one
MARGIN = 0.25  # relative margin around the losses of similar runs
NEAR_STEP = 0.25  # relative difference in steps up to which validation losses are compared

# with other values, the training loss cannot be compared with the validation loss
UNWEIGHTED = {"weighting": ("plain",), "t_sampling": ("uniform", "stratified")}

# runs with the same values of these have comparable validation losses
SIMILAR = (
    "preset",
    "dataset",
    "image_size",
    "class_conditional",
    "clusters",
    "T",
    "schedule",
    "beta_small",
    "beta_large",
    "zero_terminal_snr",
    "parameterization",
    "weighting",
    "t_sampling",
)


def check_losses(run_dir: Path, config: dict[str, Any]) -> list[Finding]:
    """Findings about metrics.csv. config: the settings in config.json, or an empty dictionary."""
    rows = read_rows(run_dir)
    train = [row["train_loss"] for row in rows if "train_loss" in row]
    validation = [row["val_loss"] for row in rows if "val_loss" in row]
    findings = [check_finite(train, validation)]
    train = [loss for loss in train if math.isfinite(loss)]
    validation = [loss for loss in validation if math.isfinite(loss)]
    if not train or not validation:
        return [*findings, Finding("validation", None, "there is no validation yet")]
    step = max(row.get("step", 0) for row in rows if "val_loss" in row)
    recent = sum(train[-RECENT:]) / len(train[-RECENT:])
    return [
        *findings,
        check_training(train, recent),
        check_gap(validation[-1], recent, config),
        check_validation(validation),
        check_similar_runs(run_dir, config, validation[-1], step),
    ]


def check_finite(train: list[float], validation: list[float]) -> Finding:
    """Check that there are losses and that all are finite."""
    bad = sum(not math.isfinite(loss) for loss in [*train, *validation])
    if not train:
        advice = "train longer than --log-every steps"
        return Finding("losses", False, "none is logged yet", advice)
    observation = (
        f"{len(train)} training and {len(validation)} validation losses, {bad} of them not finite"
    )
    return Finding("losses", not bad, observation, "try a smaller --lr, or --precision 32")


def check_training(train: list[float], recent: float) -> Finding:
    """Check that the training loss has fallen. recent: the mean of the latest losses."""
    return Finding(
        "training",
        recent < train[0] if len(train) > 1 else None,
        f"loss from {train[0]:.4f} to {recent:.4f} (mean of the last {len(train[-RECENT:])})",
        "it has not fallen: train longer, or try another --lr",
    )


def check_gap(validation: float, recent: float, config: dict[str, Any]) -> Finding:
    """Check that the validation loss is not far above the training loss, if comparable."""
    comparable = bool(config) and config.get("variance") != "learned"
    for name, values in UNWEIGHTED.items():
        comparable = comparable and config.get(name, values[0]) in values
    return Finding(
        "train/validation gap",
        validation < MAX_GAP * recent if comparable else None,
        f"validation loss {validation:.4f}, training loss {recent:.4f}",
        "the model overfits the training images: use more images, --flip, --augment, --dropout, "
        "or fewer steps",
    )


def check_validation(validation: list[float]) -> Finding:
    """Check that the validation loss has not risen much since its lowest value."""
    return Finding(
        "validation",
        validation[-1] < MAX_RISE * min(validation),
        f"loss {validation[-1]:.4f}, its lowest was {min(validation):.4f}",
        "it rises: the learning rate is too large at the end of training, "
        "or the model memorizes the training images",
    )


def check_similar_runs(
    run_dir: Path, config: dict[str, Any], validation: float, step: float
) -> Finding:
    """Check that the validation loss is close to that of similar runs at about this step."""
    others = losses_of_similar_runs(run_dir, config, step)
    if not others:
        observation = f"there is no similar run of about the same length beside {run_dir}"
        return Finding("other runs", None, observation)
    low, high = min(others) * (1 - MARGIN), max(others) * (1 + MARGIN)
    return Finding(
        "other runs",
        low <= validation <= high,
        f"validation loss {validation:.4f}; {len(others)} others of this "
        f"preset have {min(others):.4f} to {max(others):.4f} at about this step",
        "it is outside their range: compare the config.json of these runs",
    )


def losses_of_similar_runs(run_dir: Path, config: dict[str, Any], step: float) -> list[float]:
    """The validation loss nearest to `step` of every similar run in the same folder."""
    losses = []
    run_dir = run_dir.resolve()
    for file in sorted(run_dir.parent.glob("*/metrics.csv")):
        other = read_run_settings(file.parent)
        similar = bool(other) and all(other.get(name) == config.get(name) for name in SIMILAR)
        # configs of earlier versions have no condition
        similar = similar and (other.get("condition") or "") == (config.get("condition") or "")
        if file.parent == run_dir or not similar:
            continue
        with contextlib.suppress(OSError):  # without permission to read it
            if rows := validations_near(file.parent, step):
                nearest = min(rows, key=lambda row: abs(row.get("step", 0) - step))
                losses.append(nearest["val_loss"])
    return losses


def validations_near(run_dir: Path, step: float) -> list[dict[str, float]]:
    """The rows of metrics.csv with a finite validation loss near this step."""
    rows = []
    for row in read_rows(run_dir):
        finite = math.isfinite(row.get("val_loss", math.nan))
        if finite and abs(row.get("step", 0) - step) <= NEAR_STEP * step:
            rows.append(row)
    return rows
