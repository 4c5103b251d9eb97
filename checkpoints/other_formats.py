"""Read models in other formats as checkpoints without training state."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints import diffusers_format, safetensors_format
from checkpoints.checkpoint_file import sha256_of
from diffusion.settings import NETWORK, ModelSettings


def is_other_format(path: str | Path) -> bool:
    """Whether this is a .safetensors file or a diffusers folder."""
    return Path(path).suffix == ".safetensors" or diffusers_format.is_pipeline(Path(path))


def read_other_format(path: str | Path) -> dict[str, Any]:
    """The contents in the layout of a checkpoint, with the weights under "ema".

    It cannot be resumed from. It is not checked here that the weights fit the settings. "sha256"
    covers all files that were read. Raises OSError or ValueError with a one-line message.
    """
    path = Path(path)
    if path.is_dir():
        stored = diffusers_format.read_pipeline(path)
    else:
        stored = safetensors_format.read_model(path)
    return {
        "hyper_parameters": default_settings() | stored.settings,
        "ema": {"weights": stored.weights},
        "state_dict": {},
        "early": {stored.about.get("early_step", 0): stored.early} if stored.early else {},
        "noise": {},
        "elapsed": 0.0,
        "global_step": stored.about.get("step", 0),
        "course": {"data": stored.about.get("trained_on", "")},
        "sha256": combined_sha256(stored.files),
    }


def default_settings() -> dict[str, Any]:
    """The defaults of all settings except those of the network, which the file must contain."""
    defaults = asdict(ModelSettings())
    return {name: value for name, value in defaults.items() if name not in NETWORK}


def combined_sha256(files: list[Path]) -> str:
    """The sha256 of a file, or of the concatenated digests of several files."""
    digests = [sha256_of(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
