"""What a checkpoint holds: distrusted, rebuilt into a model or into a run that goes on.

    model = load_model("runs/cifar10").model       # the newest in a run directory; EMA weights

A checkpoint is data from anywhere. It is read with `weights_only=True`, which runs no code, and its settings, names,
shapes and values are checked before a network is built from it.
"""

import reprlib
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import export, posthoc_ema
from checkpoints import run_dir as RunFolder
from checkpoints.loaded_model import LoadedModel
from diffusion.settings import DERIVED, ModelSettings, check_settings
from DiffusionModel import DiffusionModel


def check_weights(weights: Any, expected: dict[str, Tensor]) -> None:
    """Raise ValueError, in one line, unless `weights` has the names, shapes and types of `expected` and is finite."""
    if not isinstance(weights, dict):
        raise ValueError("the weights must be names and tensors")
    for name in expected.keys() ^ weights.keys():
        raise ValueError(
            f"weight {reprlib.repr(name)} is {'missing' if name in expected else 'unknown'}"
        )
    for name, value in expected.items():
        given = weights[name]
        if (
            not isinstance(given, Tensor)
            or given.shape != value.shape
            or given.dtype != torch.float32
        ):
            raise ValueError(f"weight {name} must be float32 {tuple(value.shape)}")
        if (
            given.layout != torch.strided or not given.is_contiguous()
        ):  # no few bytes that claim to be many
            raise ValueError(f"weight {name} must be a plain, contiguous tensor")
        if not given.isfinite().all():
            raise ValueError(f"weight {name} holds values that are not finite")


def check_training(checkpoint: dict[str, Any], model: DiffusionModel) -> None:
    """Raise ValueError, in one line, unless everything that a run goes on from is that of `model` after `global_step`
    steps: weights, their average, Adam's state, its rate, and counters that are plain numbers."""
    steps = checkpoint["global_step"]
    check_weights(checkpoint["state_dict"], model.state_dict())
    check_weights(checkpoint["ema"].get("weights"), model.unet.state_dict())
    if checkpoint["course"].get("posthoc_ema"):
        if len(checkpoint["power"]) != len(posthoc_ema.LENGTHS):
            raise ValueError(
                f"{len(checkpoint['power'])} averages are not {len(posthoc_ema.LENGTHS)}"
            )
        for weights in checkpoint["power"]:
            check_weights(weights, model.unet.state_dict())
    fresh = model.configure_optimizers()
    (adam,), (rate,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    parameters = list(model.parameters())
    for name in ("exp_avg", "exp_avg_sq"):
        check_weights(
            {str(i): state[name] for i, state in adam["state"].items()},
            {str(i): p.detach() for i, p in enumerate(parameters)},
        )
    if any(
        type(state["step"]) is not Tensor
        or state["step"].shape
        or not 0 <= float(state["step"]) <= steps
        for state in adam["state"].values()
    ):
        raise ValueError("Adam's count of steps is not that of the run")
    expected, given = (
        fresh["optimizer"].state_dict()["param_groups"][0],
        dict(adam["param_groups"][0]),
    )
    lr = given.pop("lr")
    if (
        type(lr) is not float
        or not 0 <= lr <= model.lr
        or given != {k: v for k, v in expected.items() if k != "lr"}
    ):
        raise ValueError("Adam's settings are not those of the run")
    if (
        rate["last_epoch"] != steps
        or rate.keys() != fresh["lr_scheduler"]["scheduler"].state_dict().keys()
    ):
        raise ValueError("the learning rate's schedule is not that of the run")
    plain(
        [
            rate,
            checkpoint["loops"],
            checkpoint["callbacks"],
            checkpoint["ema"]["n"],
            checkpoint["noise"],
        ]
    )
    if {type(checkpoint["ema"]["n"]), *map(type, checkpoint["noise"].values())} != {
        int
    } or not 0 <= checkpoint["noise"]["stream"] <= 1000:
        raise ValueError("a counter is not a whole number")


def plain(value: Any) -> None:
    """Raise ValueError unless `value` is made of dictionaries, lists, numbers and words alone, and not of very many."""
    rest, seen = [value], 0
    while rest:
        part = rest.pop()
        if not isinstance(part, (dict, list, tuple, int, float, str, type(None))):
            raise ValueError(f"{type(part).__name__} stands where a number should")
        rest.extend(
            part.values()
            if isinstance(part, dict)
            else part
            if isinstance(part, (list, tuple))
            else ()
        )
        if (seen := seen + 1) > 10_000:
            raise ValueError("the counters are too many")


# ---- from files ----------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, and its "path": its sha256 and settings checked, its weights not.

    Raises FileNotFoundError or ValueError with a one-line message.
    """
    checkpoint = (
        export.read(path, check_settings) if export.is_foreign(path) else RunFolder.contents(path)
    )
    if (
        not isinstance(checkpoint, dict)
        or type(checkpoint.get("global_step")) is not int
        or type(checkpoint.get("elapsed")) is not float
        or not all(
            isinstance(checkpoint.get(part), dict)
            for part in ("hyper_parameters", "state_dict", "ema", "course", "noise")
        )
    ):
        raise RunFolder.Damaged(
            f"{path} is not a checkpoint of this project: give a file written by train.py"
        )
    check_settings(checkpoint["hyper_parameters"])
    parameters = {field.name for field in fields(ModelSettings)} | {*DERIVED}
    if missing := parameters - checkpoint["hyper_parameters"].keys():
        raise ValueError(
            f"{path} lacks the setting {min(missing)}: it is older than this code; use the version that wrote it"
        )
    return checkpoint | {"path": Path(path)}


def first_sound(
    path: str | Path, check: Callable[[dict[str, Any]], None], every: int = 1
) -> dict[str, Any]:
    """The contents of a checkpoint file, or of the newest in a run directory that can be read and passes `check`; what
    is skipped is said on standard error. Raises FileNotFoundError or ValueError, with the newest's reason, where none does."""
    files = (
        RunFolder.newest_first(path, every)
        if Path(path).is_dir() and not export.is_foreign(path)
        else [Path(path)]
    )
    if not files:
        raise FileNotFoundError(
            f"no checkpoint at {path}: give a file written by train.py, or a run directory"
        )
    reasons: list[str] = []
    for file in files:
        try:
            checkpoint = read(file)
            check(checkpoint)
        except (RunFolder.Damaged, FileNotFoundError) as error:
            reasons.append(str(error))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
        ) as error:  # of a structure from anywhere
            reason = (
                str(error)
                if isinstance(error, ValueError)
                else f"unexpected contents ({type(error).__name__})"
            )
            reasons.append(f"checkpoint {file} is refused: {reason}")
        else:
            for reason in reasons:
                print(f"skipped: {reason}", file=sys.stderr)
            return checkpoint
    raise ValueError(
        reasons[0]
        + (f"; nor is any of the {len(files) - 1} older ones usable" if len(files) > 1 else "")
    )


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    ema: bool = True,
    length: float | None = None,
) -> LoadedModel:
    """Load a model, ready to sample: on `device`, in eval mode.

    path: a checkpoint file, a run directory for its newest, or a file or folder that `export` reads.
    It has the EMA weights, the raw ones (`ema=False`), or an average of this `length` (see
    `posthoc_ema`). Raises OSError or ValueError with a one-line message.
    """

    def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        return (
            {"unet." + name: value for name, value in checkpoint["ema"]["weights"].items()}
            if ema
            else checkpoint["state_dict"]
        )

    def check(checkpoint: dict[str, Any]) -> None:
        if not ema and export.is_foreign(path):
            raise ValueError("it holds one set of weights: leave out --weights raw")
        with torch.device(
            "meta"
        ):  # shapes without memory: a hostile file cannot make this allocate anything
            expected = DiffusionModel(**checkpoint["hyper_parameters"]).state_dict()
        check_weights(weights_of(checkpoint), expected)

    checkpoint = first_sound(path, check)
    model = DiffusionModel(**checkpoint["hyper_parameters"])
    model.load_state_dict(weights_of(checkpoint))
    if length is not None:
        model.unet.load_state_dict(average(checkpoint, length, model))
    return LoadedModel(
        model=model.to(device).eval().requires_grad_(False),
        path=checkpoint["path"],
        sha256=checkpoint.get("sha256") or RunFolder.sha256(checkpoint["path"]),
        step=checkpoint["global_step"],
        trained_on=str(checkpoint["course"].get("data"))[:100],
    )


def average(checkpoint: dict[str, Any], length: float, model: DiffusionModel) -> dict[str, Tensor]:
    """The weights averaged over `length` of the checkpoint's steps, from the two averages in it and their snapshots beside it.
    Says how good it is on standard error; raises ValueError where it is not."""
    step, folder, expected = (
        checkpoint["global_step"],
        checkpoint["path"].parent.parent / "averages",
        model.unet.state_dict(),
    )
    if not checkpoint["course"].get("posthoc_ema"):
        raise ValueError(
            f"{checkpoint['path']} holds no averages to combine: train with --posthoc-ema, or leave out --ema-length"
        )

    def averages(file: Path, weights: Any) -> list[dict[str, Tensor]]:
        if type(weights) is not list or len(weights) != len(posthoc_ema.LENGTHS):
            raise ValueError(f"{file} must hold {len(posthoc_ema.LENGTHS)} averages: remove it")
        for one in weights:
            check_weights(one, expected)
        return weights

    files = [
        file
        for file in sorted(folder.glob("step_*.ckpt"))
        if "step_00000000" < file.stem < f"step_{step:08d}"
    ]
    steps = [*(int(file.stem.removeprefix("step_")) for file in files), step]
    factors, error = posthoc_ema.combination(
        [(at, posthoc_ema.gamma(kept)) for at in steps for kept in posthoc_ema.LENGTHS],
        (step, posthoc_ema.gamma(length)),
    )
    said = f"an average over {length:g} of the training, from {len(steps)} snapshots, off by {100 * error:.1f}%"
    if error > 0.3:
        raise ValueError(
            f"{said}: choose a length nearer to 0.05 or 0.1, or train with a smaller --save-every"
        )
    print(said, file=sys.stderr)
    total, rest = (
        {name: torch.zeros_like(value, dtype=torch.float64) for name, value in expected.items()},
        iter(factors.tolist()),
    )
    for file in [*files, checkpoint["path"]]:
        found = checkpoint["power"] if file == checkpoint["path"] else RunFolder.contents(file)
        for weights in averages(file, found.get("weights") if isinstance(found, dict) else found):
            factor = next(rest)
            for name, value in weights.items():
                total[name] += factor * value.double()
    return {name: value.float() for name, value in total.items()}


def to_resume(
    what: str, run_dir: Path, model: DiffusionModel, course: dict[str, Any], every: int = 1
) -> dict[str, Any] | None:
    """The checkpoint to go on from, None to start anew. what: "auto" for the newest in the run directory that is sound
    (of those at every `every`-th step), "none", or a file or other run directory.

    "none" moves an earlier run aside; "auto" moves aside what it skips (`.skipped`). Raises ValueError or
    FileNotFoundError where no file is sound, or none was trained with this `model` and this `course` (batch size, data,
    ...), or where it would fall behind what is there.
    """
    if what == "none":
        if RunFolder.newest(run_dir):
            aside = next(
                p
                for i in range(1, 10**6)
                if not (p := run_dir.with_name(f"{run_dir.name}.{i}")).exists()
            )
            run_dir.rename(aside)
            print(f"the earlier run is now in {aside}")
        return None
    if what == "auto":
        found = RunFolder.newest_first(run_dir)
        if not RunFolder.newest_first(run_dir, every):
            if (
                not found or int(found[0].stem.removeprefix("step_")) < every
            ):  # the first of them was still to come
                set_aside(found)
                return None
            every = 1  # they were saved at other steps than they are now

    def check(checkpoint: dict[str, Any]) -> None:
        if export.is_foreign(what):
            raise ValueError(
                "it holds weights alone: to go on training takes a checkpoint written by train.py"
            )
        earlier = checkpoint["hyper_parameters"] | checkpoint["course"]
        for name, value in {**model.hparams, **course}.items():
            if earlier.get(name) != value:
                raise ValueError(
                    f"it was trained with {name} {reprlib.repr(earlier.get(name))}, not {reprlib.repr(value)}: "
                    "give the same settings, another --run-dir, or --resume none"
                )
        check_training(checkpoint, model)

    checkpoint = first_sound(run_dir if what == "auto" else what, check, every)
    files = RunFolder.newest_first(run_dir)
    later = (
        files[: files.index(checkpoint["path"])]
        if checkpoint["path"] in files
        else [file for file in files if file.name > f"step_{checkpoint['global_step']:08d}.ckpt"]
    )
    if later and what != "auto":
        raise ValueError(
            f"{run_dir} holds a later checkpoint, {later[0].name}: choose another --run-dir to go on from {what}"
        )
    set_aside(later)
    return checkpoint


def set_aside(files: list[Path]) -> None:
    """Rename checkpoints, so that they are neither taken for a run's newest nor counted among those to keep."""
    for file in files:
        file.replace(file.with_name(file.name + ".skipped"))
        RunFolder.checksum(file).unlink(missing_ok=True)
