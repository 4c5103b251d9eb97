"""The small trained models in pretrained/, by name: --ckpt cifar10.

Nothing here imports torch.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from runtime.suggestions import nearest

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"


def pretrained_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def is_pretrained(path: Path) -> bool:
    """Whether this is the file of a pretrained model."""
    return path.resolve().parent == FOLDER


def model_path(text: str, other_words: Iterable[str] = ()) -> Path:
    """Parse the path or the name of a model. An existing file or folder takes precedence over a
    name from `pretrained_names`. Any other single word is an error, with a suggestion for a
    misspelled name or one of `other_words`."""
    path, names = Path(text), pretrained_names()
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    if text in names:
        return FOLDER / f"{text}.safetensors"
    if similar := nearest(text, [*names, *other_words]):
        raise argparse.ArgumentTypeError(f"no checkpoint at {text}, did you mean {similar}?")
    known = ", ".join([*other_words, *names])
    raise argparse.ArgumentTypeError(f"no checkpoint at {text}: give a path, or one of {known}")
