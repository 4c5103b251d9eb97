"""What looks wrong in a run: read from its files and named, each with what was seen and what helps.

    for finding in examine("runs/cifar10"): ...        # {"what": "EMA", "good": False, "seen": "..", "help": ".."}

Looks at metrics.csv, config.json, the newest checkpoint, images/samples.npz (what run.sh had Inference.py write), the dataset where
it is at hand, and the runs beside it.
"""

import contextlib
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import run_dir as RunFolder
from Dataset import NAMES, DiffSet
from image_data.npz_files import NpzError, is_image_array, read_npz

FLAT = 2.0  # standard deviation of an image's channels, in gray levels, below which it is called constant
TINT = 12.0  # gray levels by which a channel's mean may be off, besides three standard errors
SATURATED = 0.15  # by how much more pixels may be 0 or 255 than in the data
GAP = 1.25  # validation loss by training loss
BAND = 0.25  # beyond the lowest and highest loss of other runs, as a share
RECENT = 20  # logged losses that are averaged
YOUNG = 1000  # updates of the average
PLAIN = {
    "weighting": "plain",
    "t_sampling": "uniform",
}  # with others the training's loss is not the validation's
NEAR = 0.25  # of a run's steps, by which another run's validation may be earlier or later
SAME = (
    "preset",
    "dataset",
    "image_size",
    "class_conditional",
    "T",
    "schedule",
    "beta_small",
    "beta_large",
    "zero_terminal_snr",
    "parameterization",
    "weighting",
    "t_sampling",
)  # whose validation losses are comparable


def finding(what: str, good: bool | None, seen: str, help: str = "") -> dict[str, Any]:
    """good: None where it could not be looked at."""
    return {"what": what, "good": good, "seen": seen, "help": "" if good else help}


def examine(run_dir: Path, dataset: str | None = None, root: str = "data") -> list[dict[str, Any]]:
    """All `finding`s of a run directory. Raises ValueError or OSError, in one line, where it is none."""
    if not run_dir.is_dir() or not (run_dir / "metrics.csv").is_file():
        raise ValueError(
            f"{run_dir} is no run directory: --doctor reads the metrics.csv of one that train.py has written"
        )
    rows, settings = read_rows(run_dir), RunFolder.settings(run_dir)
    return [
        *of_losses(rows, run_dir, settings),
        *of_checkpoint(run_dir),
        *of_samples(run_dir, dataset or settings.get("dataset"), root),
    ]


def report(findings: list[dict[str, Any]]) -> str:
    """A line for each, what helps below it, and how many look wrong."""
    marks = {True: "ok  ", False: "LOOK", None: "-   "}
    lines = [
        f"{marks[one['good']]}  {one['what']}: {one['seen']}"
        + (f"\n      {one['help']}" if one["good"] is False else "")
        for one in findings
    ]
    wrong = sum(one["good"] is False for one in findings)
    unseen = sum(one["good"] is None for one in findings)
    return "\n".join(
        [
            *lines,
            (f"{wrong} of {len(findings)} look wrong" if wrong else "nothing looks wrong")
            + (f"; {unseen} could not be looked at" if unseen else ""),
        ]
    )


# ---- losses ------------------------------------------------------------------------------------------------------------


def read_rows(run_dir: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, of each what is a number."""
    found = []
    with (
        open(run_dir / "metrics.csv", newline="", errors="replace") as file,
        contextlib.suppress(csv.Error),
    ):  # a damaged end
        for row in csv.DictReader(file):
            numbers = {}
            for name, value in row.items():
                try:
                    numbers[name] = float(value)
                except (TypeError, ValueError):
                    continue
            found.append(numbers)
    return found


def of_losses(
    rows: list[dict[str, float]], run_dir: Path, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Findings of what metrics.csv says: finite, falling, near each other, and near those of the runs beside it."""
    train = [row["train_loss"] for row in rows if "train_loss" in row]
    valid = [row["val_loss"] for row in rows if "val_loss" in row]
    bad = sum(not math.isfinite(value) for value in [*train, *valid])
    seen = (
        f"{len(train)} of the training and {len(valid)} of the validation, {bad} of them not finite"
        if train
        else "none is logged yet"
    )
    found = [
        finding(
            "losses",
            not bad and bool(train),
            seen,
            "try a smaller --lr, or --precision 32"
            if train
            else "train longer than --log-every steps",
        )
    ]
    train, valid = [v for v in train if math.isfinite(v)], [v for v in valid if math.isfinite(v)]
    if not train or not valid:
        return [*found, finding("validation", None, "there is no validation yet")]
    recent = sum(train[-RECENT:]) / len(train[-RECENT:])
    found.append(
        finding(
            "training",
            recent < train[0] if len(train) > 1 else None,
            f"loss from {train[0]:.4f} to {recent:.4f} (mean of the last {len(train[-RECENT:])})",
            "it has not fallen: train longer, or try another --lr",
        )
    )
    plain = bool(settings) and all(
        settings.get(name, usual) in (usual, "stratified") for name, usual in PLAIN.items()
    )
    found.append(
        finding(
            "train/validation gap",
            valid[-1] < GAP * recent if plain and settings.get("variance") != "learned" else None,
            f"validation loss {valid[-1]:.4f}, training loss {recent:.4f}",
            "the model knows the training images better than unseen ones: more images, --flip, --augment, --dropout, "
            "or fewer steps",
        )
    )
    found.append(
        finding(
            "validation",
            valid[-1] < 1.1 * min(valid),
            f"loss {valid[-1]:.4f}, its lowest was {min(valid):.4f}",
            "it rises: the rate is too large for the end of the training, or the images are learned by heart",
        )
    )
    others, step = [], max(row.get("step", 0) for row in rows if "val_loss" in row)
    for other in sorted(run_dir.resolve().parent.glob("*/metrics.csv")):
        known = RunFolder.settings(other.parent)
        if (
            other.parent != run_dir.resolve()
            and known
            and all(known.get(name) == settings.get(name) for name in SAME)
        ):
            with contextlib.suppress(OSError):  # somebody else's
                near = [
                    row
                    for row in read_rows(other.parent)
                    if math.isfinite(row.get("val_loss", math.nan))
                    and abs(row.get("step", 0) - step) <= NEAR * step
                ]
                others += (
                    [min(near, key=lambda row: abs(row.get("step", 0) - step))["val_loss"]]
                    if near
                    else []
                )
    if not others:
        return [
            *found,
            finding(
                "other runs",
                None,
                f"none of this preset and dataset, about as long, is beside {run_dir}",
            ),
        ]
    low, high = min(others) * (1 - BAND), max(others) * (1 + BAND)
    return [
        *found,
        finding(
            "other runs",
            low <= valid[-1] <= high,
            f"validation loss {valid[-1]:.4f}; {len(others)} others of this "
            f"preset have {min(others):.4f} to {max(others):.4f} after as many steps",
            "it is outside of what they reached: compare the config.json of both",
        ),
    ]


# ---- the checkpoint and the samples --------------------------------------------------------------------------------------


def of_checkpoint(run_dir: Path) -> list[dict[str, Any]]:
    """Findings of the newest checkpoint: sound, finite, its average old enough."""
    import torch

    from checkpoints import checkpoint as Checkpoint

    try:
        checkpoint = Checkpoint.read(RunFolder.newest(run_dir) or run_dir / "checkpoints")
        ema, live = checkpoint["ema"]["weights"], checkpoint["state_dict"]
        finite = all(bool(torch.isfinite(value).all()) for value in [*ema.values(), *live.values()])
        n = int(checkpoint["ema"]["n"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [
            finding(
                "checkpoint",
                False,
                " ".join(str(error).split())[:200],
                "an older one may be sound; train on, or anew",
            )
        ]
    return [
        finding(
            "weights",
            finite,
            "all finite" if finite else "some are not finite",
            "try a smaller --lr, or --precision 32",
        ),
        finding(
            "EMA",
            n >= YOUNG,
            f"an average over {n} updates",
            f"it is young: it reaches over its last {max(1, n // 9)} steps or so; train longer before judging the samples",
        ),
    ]


def of_samples(run_dir: Path, dataset: str | None, root: str) -> list[dict[str, Any]]:
    """Findings of images/samples.npz, by themselves and beside the real images."""
    file = run_dir / "images" / "samples.npz"
    try:
        images = read_npz(file, ("arr_0",))["arr_0"]
    except (FileNotFoundError, NpzError):
        images = None
    if images is None or not is_image_array(images):
        return [
            finding(
                "samples",
                None,
                f"there are none at {file}: python Inference.py --ckpt {run_dir} --out {run_dir / 'images'}",
            )
        ]
    newest = RunFolder.newest(run_dir)
    if newest and newest.stat().st_mtime > file.stat().st_mtime:
        return [
            finding(
                "samples",
                None,
                f"{file} is older than the newest checkpoint: "
                f"python Inference.py --ckpt {run_dir} --out {run_dir / 'images'}",
            )
        ]
    spread = (
        images.reshape(len(images), -1, images.shape[3]).std(1).max(1)
    )  # (N,) of the channel that varies most
    flat = int((spread < FLAT).sum())
    found = [
        finding(
            "constant samples",
            not flat,
            f"{flat} of {len(images)} samples have one colour all over",
            "the network has not learned, or sampling has diverged: look at samples/step_*.png",
        )
    ]
    same = len(images) - len(np.unique(images.reshape(len(images), -1), axis=0))
    found.append(
        finding(
            "equal samples",
            not same,
            f"{same} of {len(images)} samples are the same as another",
            "the sampling begins from the same noise, or the model has collapsed",
        )
    )
    try:
        name = (dataset or "").lower()
        if not name or (
            name in NAMES and name != "shapes" and not (Path(root) / f"{name}.npz").is_file()
        ):
            raise ValueError(
                f"no {name}.npz in {root}" if name else "config.json names none"
            )  # it is not downloaded for this
        real = DiffSet(True, dataset or "", root, images.shape[1])
        real = real.images[real.some(5000)].permute(0, 2, 3, 1).numpy()
        if real.shape[1:] != images.shape[1:]:
            raise ValueError(f"{dataset} has other channels")
    except (OSError, ValueError) as error:
        return [*found, finding("colours", None, f"the dataset is not at hand ({error})")]
    means, expected = images.mean((0, 1, 2)), real.mean((0, 1, 2))  # (C,)
    allowed = TINT + 3 * real.mean((1, 2)).std(0) / len(images) ** 0.5
    off = means - expected
    colours = ("red", "green", "blue") if len(off) == 3 else ("gray",)
    tints = [
        f"{name} {mean:.0f} ({wanted:.0f})" for name, mean, wanted in zip(colours, means, expected)
    ]
    kind = (
        "too dark"
        if (off < -allowed).all()
        else "too bright"
        if (off > allowed).all()
        else "tinted"
    )
    found.append(
        finding(
            "colours",
            bool((abs(off) <= allowed).all()),
            f"means of the samples (of the data): {', '.join(tints)}",
            f"the samples are {kind}: train longer; for whole images that are too gray see --zero-terminal-snr",
        )
    )
    ends, real_ends = (float(((part == 0) | (part == 255)).mean()) for part in (images, real))
    found.append(
        finding(
            "saturation",
            ends <= real_ends + SATURATED,
            f"{100 * ends:.0f}% of the values are 0 or 255 ({100 * real_ends:.0f}% of the data)",
            "too many: a smaller --guidance, more --steps, or a longer training",
        )
    )
    contrast, real_contrast = (
        float(spread.mean()),
        float(real.reshape(len(real), -1, real.shape[3]).std(1).max(1).mean()),
    )
    found.append(
        finding(
            "contrast",
            0.6 < contrast / max(real_contrast, 1) < 1.6,
            f"{contrast:.0f} gray levels within an image ({real_contrast:.0f} in the data)",
            "gray, washed out images need a longer training; too much contrast, a smaller --guidance",
        )
    )
    return found
