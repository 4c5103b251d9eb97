"""Models as one .safetensors file, whose header contains all that is needed to rebuild the model.

    write_model(loaded, Path("model.safetensors"), "ema")
    stored = read_model(Path("model.safetensors"))

The header has two entries in JSON: "settings", those of the model, and "about", other information.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from checkpoints.checkpoint_file import DamagedFile, read_checkpoint_file
from checkpoints.early_average import half_precision
from checkpoints.json_values import parse_object
from checkpoints.loaded_model import LoadedModel
from runtime.atomic_file import complete_file

# settings of a model that do not describe its network or its schedule
DESCRIPTIVE = ("dataset", "class_names", "label_dropout")
HALF = (torch.float16, torch.bfloat16)
EARLY = "early."  # prefix of the names of the early average's weights


@dataclass(frozen=True)
class StoredModel:
    """The unchecked contents of a file or folder of another format.

    settings: of the model, by name. weights: of the network, by our names. about: other
    information. files: all files that were read. early: weights of an early average, in half
    precision.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    about: dict[str, Any]
    files: list[Path]
    early: dict[str, Tensor] = field(default_factory=dict)


def read_model(file: Path) -> StoredModel:
    """Read a file from `write_model`. Raises OSError or ValueError with a one-line message."""
    weights, header = read_tensors(file)
    if "settings" not in header:
        raise ValueError(
            "it does not say what network it holds: give a file written by convert.py "
            "--to safetensors, or the folder of a pipeline of diffusers"
        )
    settings = parse_object(header["settings"], "its settings")
    early = {
        name.removeprefix(EARLY): value.half()
        for name, value in weights.items()
        if name.startswith(EARLY)
    }
    weights = {name: value for name, value in weights.items() if not name.startswith(EARLY)}
    return StoredModel(settings, weights, read_about(header), [file], early)


def read_about(header: dict[str, str]) -> dict[str, Any]:
    return parse_object(header.get("about", "{}"), "its header")


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors or .bin file and its header, which is empty for a .bin file.

    Tensors of half precision are converted to float32. All tensors must be plain and contiguous, so
    that none takes more memory than its part of the file. Raises OSError or ValueError, in one
    line.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}")
    if file.suffix == ".safetensors":
        tensors, header = read_safetensors(file)
    else:
        tensors, header = read_bin(file), {}
    if not isinstance(tensors, dict) or not all(
        type(name) is str and is_plain_tensor(value) for name, value in tensors.items()
    ):
        raise ValueError(f"{file.name} must hold names and plain tensors alone")
    single = {
        name: value.float() if value.dtype in HALF else value for name, value in tensors.items()
    }
    return single, header


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:100]
        raise DamagedFile(f"{file} is not a safetensors file, or is damaged ({reason})") from None


def read_bin(file: Path) -> Any:
    try:
        return read_checkpoint_file(file)
    except DamagedFile:
        raise DamagedFile(
            f"{file} holds no weights as torch.save writes them, or is damaged"
        ) from None


def is_plain_tensor(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and value.is_contiguous()


def write_model(loaded: LoadedModel, file: Path, weights: str, half: bool = False) -> None:
    """Write the network's weights, the early average if there is one, and a header with all that is
    needed to rebuild the model.

    weights: a description such as "ema". half: write the weights in half precision.
    """
    header = {
        "settings": json.dumps(dict(loaded.model.hparams)),
        "about": describe(loaded, weights),
    }
    tensors = loaded.model.unet.state_dict()
    if half:
        tensors = half_precision(tensors)
    if loaded.early:
        early = half_precision(loaded.early.weights)
        tensors = tensors | {EARLY + name: value for name, value in early.items()}
    write_tensors(file, tensors, header)


def describe(loaded: LoadedModel, weights: str) -> str:
    """Information about a model other than its network and schedule, as JSON for "about"."""
    descriptive = {name: getattr(loaded.model.settings, name) for name in DESCRIPTIVE}
    known = {"step": loaded.step, "trained_on": loaded.trained_on, "weights": weights}
    if loaded.early:
        known["early_step"] = loaded.early.step
    return json.dumps(descriptive | known)


def write_tensors(file: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with complete_file(file) as temporary:
        # save_file would make a file that only its owner can read
        temporary.write_bytes(sort_metadata(save(plain, {"format": "pt", **header})))


def sort_metadata(data: bytes) -> bytes:
    """Return the same safetensors file with its metadata in the order of their names.

    safetensors writes them in a random order. The header is JSON after its length in 8 bytes,
    filled with spaces to a multiple of 8: https://github.com/huggingface/safetensors#format
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
