"""Read checkpoints and load models from them.

    model = load_model("runs/cifar10").model    # the newest in a run directory; EMA weights

A checkpoint is data, never code: it is read with `weights_only=True`, and its settings, names,
shapes and values are checked before a network is built from it. In addition to Lightning's keys
("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step") it has

    hyper_parameters    the settings of the model
    ema                 "weights", the moving average, and "n", the number of updates
    early               averages of early steps, for autoguidance
    power               the averages for post-hoc EMA, if the run keeps them
    course              settings that must match on resume, `FixedSettings`: batch size, data, ..
    noise               "stream": restarts after divergence; "skipped": consecutive skipped steps
    elapsed             seconds of training
"""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.averaging import average_weights
from checkpoints.checkpoint_file import DamagedFile, no_checkpoint, read_checkpoint_file, sha256_of
from checkpoints.early_average import read_early_average
from checkpoints.loaded_model import LoadedModel
from checkpoints.networks import build_model
from checkpoints.other_formats import is_other_format, read_other_format
from checkpoints.run_dir import list_checkpoints, run_dir_of
from checkpoints.validation import check_weights
from diffusion.settings import ADDED, DERIVED, ModelSettings, check_settings

DICTS = ("hyper_parameters", "state_dict", "ema", "course", "noise")
# errors that unexpected structures or types cause
MALFORMED = (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file and its "path". Only sha256 and settings are checked.

    A file or folder of another format is read as a checkpoint without training state. Raises
    OSError or ValueError with a one-line message.
    """
    read = read_other_format if is_other_format(path) else read_checkpoint_file
    checkpoint = read(path)
    if not has_checkpoint_keys(checkpoint):
        raise DamagedFile(
            f"{path} is not a checkpoint of this project: give a file written by train.py"
        )
    for name in ADDED:
        checkpoint["hyper_parameters"].setdefault(name, getattr(ModelSettings, name))
    check_settings(checkpoint["hyper_parameters"])
    names = {field.name for field in fields(ModelSettings)} | {*DERIVED}
    if missing := names - checkpoint["hyper_parameters"].keys():
        raise ValueError(
            f"{path} lacks the setting {min(missing)}: it is older than this code; "
            "use the version that wrote it"
        )
    return checkpoint | {"path": Path(path)}


def has_checkpoint_keys(contents: Any) -> bool:
    """Whether these contents have the keys of a checkpoint, with values of the right types."""
    return (
        isinstance(contents, dict)
        and type(contents.get("global_step")) is int
        and type(contents.get("elapsed")) is float
        and all(isinstance(contents.get(key), dict) for key in DICTS)
    )


def first_valid_checkpoint(
    path: str | Path, check: Callable[[dict[str, Any]], None], every: int = 1
) -> dict[str, Any]:
    """The contents of a checkpoint file, or of the newest valid one in a run directory.

    A checkpoint is valid if it can be read and `check` raises nothing. In a run directory, only
    checkpoints at multiples of `every` steps are tried. Skipped checkpoints are reported on
    standard error. Raises FileNotFoundError or ValueError if none is valid, with the reason for the
    newest one, and OSError if one cannot be opened or read, because that one may be valid.
    """
    is_run_dir = Path(path).is_dir() and not is_other_format(path)
    files = list_checkpoints(run_dir_of(Path(path)), every) if is_run_dir else [Path(path)]
    if not files:
        raise FileNotFoundError(no_checkpoint(path))
    reasons: list[str] = []
    for file in files:
        try:
            checkpoint = read_checkpoint(file)
            check(checkpoint)
        except (DamagedFile, FileNotFoundError) as error:
            reasons.append(str(error))
        except ValueError as error:
            reasons.append(f"checkpoint {file} is refused: {error}")
        except MALFORMED as error:
            kind = type(error).__name__
            reasons.append(f"checkpoint {file} is refused: unexpected contents ({kind})")
        else:
            for reason in reasons:
                print(f"skipped: {reason}", file=sys.stderr)
            return checkpoint
    older = len(files) - 1
    others = f"; {older} older checkpoint{'s were' if older > 1 else ' was'} refused, too"
    raise ValueError(reasons[0] + (others if older else ""))


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    ema: bool = True,
    length: float | None = None,
) -> LoadedModel:
    """Load a model, ready to sample: on `device`, in eval mode.

    path: a checkpoint, a run directory (its newest valid checkpoint), or a file or folder of
    another format. The model has the EMA weights, the raw ones (`ema=False`), or those of a
    post-hoc EMA. length: relative standard deviation of the averaging profile of that EMA. Raises
    OSError or ValueError with a one-line message.
    """

    def check(checkpoint: dict[str, Any]) -> None:
        if not ema and is_other_format(path):
            raise ValueError("it holds one set of weights: leave out --weights raw")
        # the meta device allocates no memory, whatever sizes an untrusted file asks for
        with torch.device("meta"):
            expected = build_model(checkpoint["hyper_parameters"]).state_dict()
        check_weights(model_weights(checkpoint, ema), expected)
        if checkpoint.get("early"):
            check_weights(model_weights(checkpoint, ema=True), expected)
        read_early_average(checkpoint)

    checkpoint = first_valid_checkpoint(path, check)
    model = build_model(checkpoint["hyper_parameters"])
    model.load_state_dict(model_weights(checkpoint, ema))
    if length is not None:
        model.unet.load_state_dict(average_weights(checkpoint, length, model))
    return LoadedModel(
        model=model.to(device).eval().requires_grad_(False),
        path=checkpoint["path"],
        sha256=checkpoint.get("sha256") or sha256_of(checkpoint["path"]),
        step=checkpoint["global_step"],
        trained_on=str(checkpoint["course"].get("data"))[:100],
        early=read_early_average(checkpoint),
    )


def model_weights(checkpoint: dict[str, Any], ema: bool) -> dict[str, Tensor]:
    """The EMA or the raw weights in a checkpoint, by their names in the model."""
    if not ema:
        return checkpoint["state_dict"]
    return {f"unet.{name}": value for name, value in checkpoint["ema"]["weights"].items()}
