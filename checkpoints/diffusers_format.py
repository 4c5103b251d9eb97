"""Models as diffusers folders, in the format of DDPMPipeline.

    write_pipeline(loaded, Path("pipeline"), "ema")    # DDPMPipeline.from_pretrained("pipeline")
    stored = read_pipeline(Path("ddpm-cifar10-32"))    # as published on the Hugging Face Hub

diffusers is not imported here. The results were compared with diffusers 0.42.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from checkpoints.diffusers_scheduler import scheduler_config, scheduler_settings
from checkpoints.diffusers_unet import unet_config, unet_settings
from checkpoints.diffusers_weights import from_diffusers, to_current_name, to_diffusers
from checkpoints.json_values import parse_object
from checkpoints.loaded_model import LoadedModel
from checkpoints.safetensors_format import (
    StoredModel,
    describe,
    read_about,
    read_tensors,
    write_tensors,
)
from runtime.atomic_file import complete_file

Settings = dict[str, Any]

VERSION = "0.42.0"  # of diffusers, written to the configurations
INDEX = "model_index.json"
UNET_CONFIG = "unet/config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def is_pipeline(folder: Path) -> bool:
    """Whether this is a diffusers folder. It may be incomplete."""
    marks = (INDEX, UNET_CONFIG, "scheduler_config.json", *WEIGHTS)
    return any((folder / mark).is_file() for mark in marks)


# ---- reading ------------------------------------------------------------------------------------


def read_pipeline(folder: Path) -> StoredModel:
    """Read a folder with unet/ and scheduler/, or one with all files at its root.

    google/ddpm-cifar10-32 is published in the second form. Raises OSError or ValueError with a
    one-line message, or one of `checkpoint.MALFORMED` for unexpected contents.
    """
    files = pipeline_files(folder)
    unet_file, scheduler_file, weights_file = files
    weights, header = read_tensors(weights_file)
    about = read_about(header)
    names = tuple(about.get("class_names", ()))
    settings: Settings = {"label_dropout": 0.0}
    settings |= {name: about[name] for name in ("dataset", "label_dropout") if name in about}
    settings |= read_config(unet_file, folder, lambda config: unet_settings(config, names))
    settings |= read_config(scheduler_file, folder, scheduler_settings)
    if (settings["variance"] == "learned") != (settings["outputs"] == 2):
        raise ValueError(
            "out_channels must be twice in_channels where variance_type is learned_range, "
            "and only there"
        )
    label = "label.weight"
    if settings["unet2d"]:
        label = "net.class_embedding.weight"
        weights = {f"net.{to_current_name(name)}": value for name, value in weights.items()}
    else:
        weights = from_diffusers(weights, len(settings["mults"]), settings["blocks"])
    if settings["classes"] and settings["class_names"] != names and label in weights:
        # the network always got a class in training, but our embedding needs a row for "no class"
        settings["label_dropout"] = 0.0
        weights[label] = F.pad(weights[label], (0, 0, 0, 1))
    return StoredModel(settings, weights, about, files)


def pipeline_files(folder: Path) -> list[Path]:
    """The files of the network's and the scheduler's configurations and of the weights.

    Raises FileNotFoundError if one is missing.
    """
    nested = (folder / "unet").is_dir()
    unet, scheduler = (folder / "unet", folder / "scheduler") if nested else (folder, folder)
    weights = [unet / name for name in WEIGHTS if (unet / name).is_file()]
    files = [
        unet / "config.json",
        scheduler / "scheduler_config.json",
        weights[0] if weights else unet / WEIGHTS[0],
    ]
    # the index is written last, so a folder without it is incomplete
    required = [*files, folder / INDEX] if nested else files
    for file in required:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: a pipeline of diffusers has the configurations of its network "
                "and its scheduler, weights, and model_index.json"
            )
    return files


def read_config(file: Path, folder: Path, convert: Callable[[Settings], Settings]) -> Settings:
    """Read a configuration and convert it to our settings. Errors begin with the file's name."""
    try:
        return convert(parse_object(file.read_bytes(), "it"))
    except ValueError as error:
        raise ValueError(f"{file.relative_to(folder)}: {error}") from None


# ---- writing ------------------------------------------------------------------------------------


def check_output_folder(folder: Path) -> None:
    """Raise ValueError if anything other than a pipeline would be overwritten."""
    if not folder.exists():
        return
    index = folder / INDEX
    if index.is_file() and "DDPMPipeline" in index.read_text(errors="replace"):
        return
    if not (folder.is_dir() and is_interrupted_pipeline(folder)):
        raise ValueError(
            f"{folder} exists and is not a DDPMPipeline: remove it, or choose another --out"
        )


def is_interrupted_pipeline(folder: Path) -> bool:
    """Whether all files in this folder are from an interrupted `write_pipeline`."""
    written = (INDEX, "unet", f"unet/{WEIGHTS[0]}", UNET_CONFIG, "scheduler", SCHEDULER_CONFIG)
    return all(
        ".tmp." in file.name or file.relative_to(folder).as_posix() in written
        for file in folder.rglob("*")
    )


def write_pipeline(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """Write a DDPMPipeline of diffusers. weights: a description such as "ema".

    The index of an older pipeline is removed first and the new one is written last, so that an
    incomplete folder is never mistaken for a pipeline. Raises ValueError if the network cannot be
    expressed as a UNet2DModel.
    """
    settings = dict(loaded.model.hparams)
    unet, scheduler = unet_config(settings), scheduler_config(settings)
    tensors = loaded.model.unet.state_dict()
    if settings["unet2d"]:
        tensors = {name.removeprefix("net."): value for name, value in tensors.items()}
    else:
        tensors = to_diffusers(tensors, len(settings["mults"]), settings["blocks"])
    version = {"_diffusers_version": VERSION}
    (folder / INDEX).unlink(missing_ok=True)
    write_tensors(folder / "unet" / WEIGHTS[0], tensors, {"about": describe(loaded, weights)})
    write_json(folder / UNET_CONFIG, {"_class_name": "UNet2DModel", **version, **unet})
    write_json(folder / SCHEDULER_CONFIG, {"_class_name": "DDPMScheduler", **version, **scheduler})
    index = {
        "_class_name": "DDPMPipeline",
        **version,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(folder / INDEX, index)


def write_json(file: Path, contents: dict[str, Any]) -> None:
    with complete_file(file) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n")
