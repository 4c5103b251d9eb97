"""A checkpoint as a file: found, distrusted, rebuilt into a model, written whole.

    model = load_model("runs/cifar10")                     # the newest in a run directory, or one file; EMA weights

A checkpoint is data from anywhere. It is read with `weights_only=True`, which runs no code, and its settings, names,
shapes and values are checked before a network is built from it.
"""

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from CompleteFile import complete_file
from DiffusionModel import PARAMETERIZATIONS, VARIANCES, DiffusionModel

NUMBERS: dict[str, tuple[type, float, float]] = {
    "T": (int, 1, 100_000), "beta_small": (float, 1e-12, 0.9999), "beta_large": (float, 1e-12, 0.9999),
    "depth": (int, 1, 16), "size": (int, 1, 1024), "width": (int, 4, 1024), "blocks": (int, 1, 16),
    "dropout": (float, 0, 0.999), "patch": (int, 1, 16), "film": (bool, 0, 1), "classes": (int, 0, 100_000),
    "lr": (float, 0, 10), "warmup": (int, 0, 10**9), "seed": (int, 0, 2**63 - 1),
}
LISTS = {"mults": (1, 8, 64), "attention": (0, 16, 1024)}  # fewest, most, and the largest number in it
CHOICES = {"parameterization": PARAMETERIZATIONS, "variance": VARIANCES}


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError, in one line, at the first setting of a `DiffusionModel` of a wrong type or out of range."""
    for name, value in settings.items():
        if name in NUMBERS:
            kind, low, high = NUMBERS[name]
            good, expected = type(value) is kind and low <= value <= high, f"{kind.__name__} from {low:g} to {high:g}"
        elif name in LISTS:
            fewest, most, high = LISTS[name]
            good = (type(value) is tuple and fewest <= len(value) <= most
                    and all(type(v) is int and 1 <= v <= high for v in value))
            expected = f"{fewest} to {most} whole numbers from 1 to {high}"
        elif name in CHOICES:
            good, expected = value in CHOICES[name], f"one of {', '.join(CHOICES[name])}"
        elif name == "dataset":
            good, expected = type(value) is str, "a name"
        elif name == "class_names":
            good, expected = type(value) is tuple and all(type(v) is str for v in value), "names"
        else:
            raise ValueError(f"unknown setting {name!r:.40}")
        if not good:
            raise ValueError(f"{name} must be {expected}, not {value!r:.40}")
    if settings.get("beta_small", 0) > settings.get("beta_large", 1):
        raise ValueError(f"beta_small {settings['beta_small']} is larger than beta_large {settings['beta_large']}")
    if {"T", "beta_small", "beta_large"} <= settings.keys():
        signal = np.prod(np.sqrt(1 - np.linspace(settings["beta_small"], settings["beta_large"], settings["T"])))
        if signal < 1e-15:
            raise ValueError(f"T {settings['T']} steps up to beta_large {settings['beta_large']} leave no trace of the image "
                             f"(sqrt(alpha_bar(T)) = {signal:.0e}): choose fewer steps or a smaller beta_large")


def check_weights(weights: Any, expected: dict[str, Tensor]) -> None:
    """Raise ValueError, in one line, unless `weights` has the names, shapes and types of `expected` and is finite."""
    if not isinstance(weights, dict):
        raise ValueError("the weights must be names and tensors")
    for name in expected.keys() ^ weights.keys():
        raise ValueError(f"weight {name!r:.60} is {'missing' if name in expected else 'unknown'}")
    for name, value in expected.items():
        given = weights[name]
        if not isinstance(given, Tensor) or given.shape != value.shape or given.dtype != torch.float32:
            raise ValueError(f"weight {name} must be float32 {tuple(value.shape)}")
        if given.layout != torch.strided or not given.is_contiguous():  # no few bytes that claim to be many
            raise ValueError(f"weight {name} must be a plain, contiguous tensor")
        if not given.isfinite().all():
            raise ValueError(f"weight {name} holds values that are not finite")


def newest(run_dir: str | Path) -> Path | None:
    """The checkpoint with the most steps in a run directory, None where there is none."""
    return max(Path(run_dir).glob("checkpoints/step_*.ckpt"), default=None)


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, or of a run directory's newest, and its "path": settings checked, weights not.

    Raises FileNotFoundError or ValueError with a one-line message.
    """
    file = newest(path) if Path(path).is_dir() else Path(path)
    if file is None or not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give a file written by train.py, or a run directory")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign files: the one line below says it
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        settings = checkpoint["hyper_parameters"]
        if (not all(isinstance(checkpoint[part], dict) for part in ("hyper_parameters", "state_dict", "ema", "course"))
                or type(checkpoint["global_step"]) is not int or type(checkpoint["elapsed"]) is not float):
            raise ValueError
    except Exception as error:  # whatever a reader of archives and pickles raises on bytes from anywhere
        raise ValueError(f"{file} is not a checkpoint of this project, or is damaged ({type(error).__name__}): "
                         "give a file written by train.py") from None
    try:
        check_settings(settings)
        parameters = {*inspect.signature(DiffusionModel).parameters} - {"network"} | NUMBERS.keys() | LISTS.keys()
        if missing := parameters - settings.keys():
            raise ValueError(f"setting {min(missing)} is missing")
    except ValueError as error:
        raise ValueError(f"checkpoint {file} is refused: {error}") from None
    return checkpoint | {"path": file}


def load_model(path: str | Path, device: str | torch.device = "cpu", ema: bool = True) -> DiffusionModel:
    """The model of a checkpoint file, or of a run directory's newest, ready to sample: on `device`, in eval mode, with
    the EMA weights or (`ema=False`) the raw ones. Raises FileNotFoundError or ValueError with a one-line message.
    """
    checkpoint = read(path)
    try:
        with torch.device("meta"):  # shapes without memory: a hostile file cannot make this allocate anything
            expected = DiffusionModel(**checkpoint["hyper_parameters"]).state_dict()
        weights = checkpoint["state_dict"]
        if ema:
            weights = {"unet." + name: value for name, value in checkpoint["ema"]["weights"].items()}
        check_weights(weights, expected)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path} is refused: {error}") from None
    model = DiffusionModel(**checkpoint["hyper_parameters"])
    model.load_state_dict(weights)
    return model.to(device).eval().requires_grad_(False)


def to_resume(what: str, run_dir: Path, model: DiffusionModel, course: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint to go on from, None to start anew. what: "auto" for the run directory's newest, "none", or a file.

    "none" moves an earlier run aside. Raises ValueError or FileNotFoundError where the file is not sound, or was trained
    with another `model` or another `course` (batch size, data, ...), or where it would fall behind what is there.
    """
    if what == "none":
        if newest(run_dir):
            aside = next(p for i in range(1, 10**6) if not (p := run_dir.with_name(f"{run_dir.name}.{i}")).exists())
            run_dir.rename(aside)
            print(f"the earlier run is now in {aside}")
        return None
    path = newest(run_dir) if what == "auto" else Path(what)
    if path is None:
        return None
    checkpoint = read(path)
    latest = newest(run_dir)
    if latest and latest.name > f"step_{checkpoint['global_step']:08d}.ckpt":
        raise ValueError(f"{run_dir} holds a later checkpoint, {latest.name}: choose another --run-dir to go on from {path}")
    earlier = checkpoint["hyper_parameters"] | checkpoint["course"]
    for name, value in {**model.hparams, **course}.items():
        if earlier.get(name) != value:
            raise ValueError(f"{path} was trained with {name} {earlier.get(name)}, not {value}: "
                             "give the same settings, another --run-dir, or --resume none")
    try:
        check_weights(checkpoint["state_dict"], model.state_dict())
        check_weights(checkpoint["ema"].get("weights"), model.unet.state_dict())
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint['path']} is refused: {error}") from None
    return checkpoint


class CompleteCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their place and renamed, so that a file that appears is complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with complete_file(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", weights_only=True)
