"""Models in other people's formats, as files: pipelines of diffusers, safetensors; read as `Checkpoint` takes them, and written.

    write_pipeline(loaded, Path("pipeline"), "ema")    # for DDPMPipeline.from_pretrained("pipeline")
    write_safetensors(loaded, Path("model.safetensors"), "ema")
    checkpoint = read("ddpm-cifar10-32", check_settings)         # a folder as it is published, or a file written here

They hold one set of weights, and nothing to go on training from. What is read is data from anywhere: no code in it is run.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from checkpoints import diffusers_format, run_dir
from checkpoints.loaded_model import LoadedModel
from DiffusionModel import DiffusionModel
from runtime.atomic_file import complete_file
from runtime.suggestions import unknown

Settings = dict[str, Any]
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
UNSAID = (
    "dataset",
    "class_names",
    "label_dropout",
)  # what diffusers' configurations have no word for: it is in the weights' header
MARKS = (
    "model_index.json",
    "unet/config.json",
    "scheduler_config.json",
    *WEIGHTS,
)  # any of them, and a folder is diffusers'


def is_foreign(path: str | Path) -> bool:
    """Whether this is a .safetensors file, or a folder of diffusers."""
    return Path(path).suffix == ".safetensors" or any(
        (Path(path) / name).is_file() for name in MARKS
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(path: str | Path, check: Callable[[Settings], None]) -> dict[str, Any]:
    """The contents of what `is_foreign`, as a checkpoint without training: its weights are those of "ema", and whether they fit is
    not checked; "sha256" is of all that was read. `check` is `Checkpoint.check_settings`. Raises OSError or ValueError, in one line.
    """
    path = Path(path)
    if path.is_dir():
        settings, weights, about, files = read_pipeline(path, check)
    else:
        (weights, header), files = read_tensors(path), [path]
        if "settings" not in header:
            raise ValueError(
                "it does not say what network it holds: give a file written by convert.py --to safetensors, or the "
                "folder of a pipeline of diffusers"
            )
        settings, about = (
            of_json(header["settings"], "its settings"),
            of_json(header.get("about", "{}"), "its header"),
        )
    defaults = {
        name: p.default
        for name, p in inspect.signature(DiffusionModel).parameters.items()
        if name != "network"
    }
    sums = [run_dir.sha256(file) for file in files]
    return {
        "hyper_parameters": defaults | settings,
        "ema": {"weights": weights},
        "state_dict": {},
        "noise": {},
        "elapsed": 0.0,
        "global_step": about.get("step", 0),
        "course": {"data": about.get("trained_on", "")},
        "sha256": sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest(),
    }


def read_pipeline(
    path: Path, check: Callable[[Settings], None]
) -> tuple[Settings, dict[str, Tensor], dict[str, Any], list[Path]]:
    """Settings, weights by our names, what else is said of them, and the files, of a folder with unet/ and scheduler/, or one with
    everything at its root, as google/ddpm-cifar10-32 was published."""
    nested = (path / "unet").is_dir()
    net, scheduler = (path / "unet", path / "scheduler") if nested else (path, path)
    files = [
        net / "config.json",
        scheduler / "scheduler_config.json",
        next((net / name for name in WEIGHTS if (net / name).is_file()), net / WEIGHTS[0]),
    ]
    for file in [
        *files,
        *([path / "model_index.json"] if nested else []),
    ]:  # the last that is written
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: a pipeline of diffusers has the configurations of its network and its scheduler, "
                "weights, and model_index.json"
            )
    weights, header = read_tensors(files[2])
    about = of_json(header.get("about", "{}"), "its header")
    settings: Settings = {"label_dropout": 0.0} | {
        name: about[name] for name in ("dataset", "label_dropout") if name in about
    }
    names = tuple(about.get("class_names", ()))
    for file, translate in (
        (files[0], lambda config: diffusers_format.unet_settings(config, names, check)),
        (files[1], lambda config: diffusers_format.scheduler_settings(config, check)),
    ):
        try:
            settings |= translate(of_json(file.read_bytes(), "it"))
        except ValueError as error:
            raise ValueError(f"{file.relative_to(path)}: {error}") from None
    if (settings["variance"] == "learned") != (settings["outputs"] == 2):
        raise ValueError(
            "out_channels must be twice in_channels where variance_type is learned_range, and only there"
        )
    weights = diffusers_format.from_diffusers(weights, len(settings["mults"]), settings["blocks"])
    if settings["classes"] and settings["class_names"] != names and "label.weight" in weights:
        settings["label_dropout"] = 0.0  # it was never asked for an image of no class,
        weights["label.weight"] = F.pad(
            weights["label.weight"], (0, 0, 0, 1)
        )  # which takes a row all the same
    return settings, weights, about, files


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors or .bin file, float32 where they were of half that precision, and its header, which a .bin lacks.
    Each is plain and contiguous: as large as its part of the file."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}")
    header: dict[str, str] = {}
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                header = opened.metadata() or {}
                names = opened.keys()
                found = {name: opened.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise run_dir.Damaged(
                f"{file} is no safetensors file, or is damaged ({' '.join(str(error).split())[:100]})"
            ) from None
    else:
        try:
            found = run_dir.contents(file)
        except run_dir.Damaged:
            raise run_dir.Damaged(
                f"{file} holds no weights as torch.save writes them, or is damaged"
            ) from None
    if not isinstance(found, dict) or not all(
        type(name) is str
        and type(value) is Tensor
        and value.layout == torch.strided
        and value.is_contiguous()
        for name, value in found.items()
    ):
        raise ValueError(f"{file.name} must hold names and plain tensors alone")
    return {
        name: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        for name, value in found.items()
    }, header


def of_json(text: str | bytes, what: str) -> Settings:
    """An object of JSON, with tuples for lists, as settings have them. Raises ValueError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be an object of JSON, not {type(found).__name__}")
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }


# ---- writing ---------------------------------------------------------------------------------------------------------


def of_one_class(loaded: LoadedModel, text: str) -> LoadedModel:
    """A model with classes as one without: all its images are of this class, by number or name, or of "none". Raises ValueError."""
    model = loaded.model
    net, names = model.unet, [*model.hparams["class_names"]]
    if model.hparams["label_dropout"]:
        names.append("none")
    if net.label is None:
        raise ValueError("this model knows no classes: leave out --class")
    lower, wanted = [name.lower() for name in names], text.lower()
    if wanted not in lower and not (text.isdecimal() and int(text) < net.classes):
        raise ValueError(
            unknown("class", text, names[:20], f", or a number from 0 to {net.classes - 1}")
        )
    weights = net.state_dict()
    weights["time.2.bias"] = (
        weights["time.2.bias"]
        + weights.pop("label.weight")[lower.index(wanted) if wanted in lower else int(text)]
    )
    one = DiffusionModel(**{**model.hparams, "classes": 0, "class_names": ()})
    one.unet.load_state_dict(weights)
    return replace(loaded, model=one.eval().requires_grad_(False))


def about(loaded: LoadedModel, weights: str) -> str:
    """JSON of what is known of a model besides its settings; weights: which of a checkpoint's they are."""
    return json.dumps(
        {name: loaded.model.hparams[name] for name in UNSAID}
        | {"step": loaded.step, "trained_on": loaded.trained_on, "weights": weights}
    )


def check_place(folder: Path) -> None:
    """Raise ValueError, in one line, where something else than a pipeline, whole or interrupted, is at the place of one."""
    index, parts = (
        folder / MARKS[0],
        {
            MARKS[0],
            "unet",
            f"unet/{WEIGHTS[0]}",
            MARKS[1],
            "scheduler",
            "scheduler/scheduler_config.json",
        },
    )
    if (
        folder.exists()
        and not (index.is_file() and "DDPMPipeline" in index.read_text(errors="replace"))
        and not (
            folder.is_dir()
            and all(
                ".tmp." in file.name or file.relative_to(folder).as_posix() in parts
                for file in folder.rglob("*")
            )
        )
    ):
        raise ValueError(
            f"{folder} is there, and no DDPMPipeline: remove it, or choose another --out"
        )


def write_pipeline(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """A DDPMPipeline of diffusers. An older one in `folder` is none from the first byte to the last. Raises ValueError where the network
    is no UNet2DModel."""
    model, settings = loaded.model, dict(loaded.model.hparams)
    unet, scheduler = (
        diffusers_format.unet_config(settings),
        diffusers_format.scheduler_config(settings),
    )
    tensors = diffusers_format.to_diffusers(
        model.unet.state_dict(), len(settings["mults"]), settings["blocks"]
    )
    version = {"_diffusers_version": diffusers_format.VERSION}
    (folder / MARKS[0]).unlink(missing_ok=True)
    write_tensors(folder / "unet" / WEIGHTS[0], tensors, {"about": about(loaded, weights)})
    write_json(folder / "unet" / "config.json", {"_class_name": "UNet2DModel", **version, **unet})
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "DDPMScheduler", **version, **scheduler},
    )
    write_json(
        folder / MARKS[0],
        {
            "_class_name": "DDPMPipeline",
            **version,
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    )


def write_safetensors(loaded: LoadedModel, file: Path, weights: str) -> None:
    """The weights of the network by their names here, and in the header's "settings" all that rebuilds the model."""
    write_tensors(
        file,
        loaded.model.unet.state_dict(),
        {"settings": json.dumps(dict(loaded.model.hparams)), "about": about(loaded, weights)},
    )


def write_tensors(file: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    with complete_file(file) as temporary:  # save_file would let nobody but its owner read it
        temporary.write_bytes(
            save(
                {name: value.cpu().contiguous() for name, value in tensors.items()},
                {"format": "pt", **header},
            )
        )


def write_json(file: Path, contents: dict[str, Any]) -> None:
    with complete_file(file) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n")


def write_onnx(loaded: LoadedModel, file: Path, weights: str) -> float | None:
    """`DiffusionModel.forward` for any number of images: x, t in 1..T and, where there are classes, y (the number of them: none) ->
    output; the file's metadata says so, too. It appears once onnxruntime, where that is installed, gives what torch gives within 1e-4
    of the largest number (or of 1): -> how far it is off, else None. Raises ValueError where it does not, or cannot be exported."""
    import onnx

    model, net, T = loaded.model, loaded.model.unet, loaded.model.T

    def inputs(B: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(B)
        given = {
            "x": torch.randn(B, net.depth, net.size, net.size, generator=random),
            "t": torch.randint(1, T + 1, (B,), generator=random),
        }
        return given | ({"y": torch.arange(B) % (net.classes + 1)} if net.classes else {})

    B, example, given = torch.export.Dim("B", min=1), inputs(2), inputs(3)
    try:
        with complete_file(file) as temporary:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                warnings.catch_warnings(),
            ):  # what it tells its own developers
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    model.cpu(),
                    tuple(example.values()),
                    dynamo=True,
                    verbose=False,
                    external_data=False,
                    input_names=[*example],
                    output_names=["output"],
                    dynamic_shapes=tuple({0: B} for _ in example),
                )
            assert program is not None
            onnx.helper.set_model_props(
                proto := program.model_proto,
                {
                    "inputs": f"x: x_t, pixels in [-1, 1] at t = 0; t: from 1 (hardly noised) to {T} (noise), never 0"
                    + (f"; y: a class, from 0, or {net.classes} for none" if net.classes else ""),
                    "output": model.parameterization
                    + (
                        ", then the place of the log variance"
                        if model.variance == "learned"
                        else ""
                    ),
                    "alpha_bar": json.dumps(model.schedule["alpha_bar"]),
                    "settings": json.dumps(dict(model.hparams)),
                    "about": about(loaded, weights),
                },
            )
            onnx.save(proto, temporary)
            onnx.checker.check_model(temporary)
            if not importlib.util.find_spec("onnxruntime"):
                return None
            import onnxruntime

            session = onnxruntime.InferenceSession(
                str(temporary), providers=["CPUExecutionProvider"]
            )
            found = torch.from_numpy(
                session.run(None, {name: value.numpy() for name, value in given.items()})[0]
            )
            with torch.no_grad():
                expected = model(*given.values())
            error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
            if not error <= 1e-4:
                raise ArithmeticError(f"what onnxruntime computes is off by {error:.1e}")
            return error
    except OSError:
        raise
    except Exception as error:  # of many kinds, and many lines
        raise ValueError(
            f"this network cannot be exported ({type(error).__name__}: {' '.join(str(error).split())[:100]}): other "
            "versions of torch, onnxscript and onnxruntime may do it"
        ) from None
