"""Pairs of images: FOLDER/input/a.png and FOLDER/target/a.png.

    check_pairs(Path("photos"))                  # each input has a target of the same name
    images = joined(target, given)               # uint8 (N,C+K,H,W)

Letters in the shape comments: N pairs, C channels of a target, K of an input, H and W height and
width.
"""

from pathlib import Path

import torch
from torch import Tensor

from image_data.image_files import image_paths
from image_data.mapped_images import Images, JoinedImages

INPUT, TARGET = "input", "target"


def check_pairs(folder: Path) -> None:
    """Raise ValueError, in one line, unless both folders have images of the same names."""
    names = {part: names_in(folder / part) for part in (INPUT, TARGET)}
    for part, found in names.items():
        if not found:
            raise ValueError(
                f"no image in {folder / part}: --condition pairs takes a folder that contains "
                f"{INPUT} and {TARGET}"
            )
    if names[INPUT] == names[TARGET]:
        return
    without = set(names[INPUT]) ^ set(names[TARGET])
    if not without:
        alike = same_names(folder / INPUT) or same_names(folder / TARGET)
        images = " and ".join(map(str, alike)) or f"images in {folder}"
        raise ValueError(f"{images} have names that differ only in the extension: rename one")
    name = min(without)
    here, there = (INPUT, TARGET) if name in names[INPUT] else (TARGET, INPUT)
    raise ValueError(
        f"{folder / here} has {name}, but {folder / there} does not: "
        "both need images with the same names"
    )


def names_in(folder: Path) -> list[str]:
    """The names of a folder's images without their extensions, in the order of `image_paths`."""
    return [str(path.relative_to(folder).with_suffix("")) for path in image_paths(folder)]


def same_names(folder: Path) -> list[Path]:
    """Two images of a folder whose names differ only in the extension; empty if there are none."""
    found: dict[Path, Path] = {}
    for path in image_paths(folder):
        earlier = found.setdefault(path.with_suffix(""), path)
        if earlier != path:
            return [earlier, path]
    return []


def joined(target: Images, given: Images) -> Images:
    """The channels of the target, then those of the input, for each pair."""
    if isinstance(target, Tensor) and isinstance(given, Tensor):
        return torch.cat([target, given], dim=1)
    return JoinedImages(target, given)
