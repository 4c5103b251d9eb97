"""Images in a terminal: the half block ▀ shows two pixels, one above the other, in a character's colour and its background.

    show(images)          # uint8 (N,H,W,C): as many as fit across the terminal and half its height; elsewhere, nothing

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

GAP = 2  # pixels between images
LEVELS = np.array(
    [0, 95, 135, 175, 215, 255]
)  # of red, green and blue in the 6x6x6 cube of xterm's 256 colours
GRAYS = np.arange(8, 248, 10)  # and its gray ramp
PALETTE = np.concatenate(
    [
        np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), -1).reshape(-1, 3),
        np.repeat(GRAYS[:, None], 3, 1),
    ]
)  # (240,3): colours 16 to 255


def colours(stream: Any, environment: Mapping[str, str]) -> int:
    """How many colours the terminal behind `stream` shows, as far as the environment tells: 2^24, 256 or, where it is no terminal
    or is to have no colours (https://no-color.org), 0."""
    term, encoding = (
        environment.get("TERM", "dumb"),
        (getattr(stream, "encoding", None) or "").lower(),
    )
    if (
        not stream.isatty()
        or environment.get("NO_COLOR")
        or term == "dumb"
        or not encoding.startswith("utf")
    ):
        return 0
    if environment.get("COLORTERM") in ("truecolor", "24bit") or term.endswith("-direct"):
        return 2**24
    return 256 if "256color" in term else 0


def sheet(images: np.ndarray, width: int, height: int) -> np.ndarray:
    """The first images, row by row, on a black sheet of at most width x height pixels: uint8 (N,H,W,1 or 3) -> (height, width, 3).
    None is enlarged, and all become smaller where a single one would not fit."""
    _, H, W, _ = images.shape
    smaller = min(1.0, width / W, height / H)
    h, w = max(1, int(H * smaller)), max(1, int(W * smaller))
    across, down = max(1, (width + GAP) // (w + GAP)), max(1, (height + GAP) // (h + GAP))
    shown = images[: across * down]
    across, down = min(across, len(shown)), -(-len(shown) // across)
    canvas = Image.new("RGB", (across * (w + GAP) - GAP, down * (h + GAP) - GAP))
    for i, image in enumerate(np.broadcast_to(shown, (*shown.shape[:3], 3))):
        tile = Image.fromarray(np.ascontiguousarray(image)).resize((w, h), Image.Resampling.LANCZOS)
        canvas.paste(tile, (i % across * (w + GAP), i // across * (h + GAP)))
    return np.asarray(canvas)


def blocks(image: np.ndarray, colours: int) -> str:
    """uint8 (H,W,3) -> ceil(H / 2) lines of W half blocks with escape sequences; a missing last row is the terminal's background."""

    def code(
        layer: int, pixel: np.ndarray
    ) -> str:  # layer: 38 the character's colour, 48 its background
        if colours == 256:
            return f"{layer};5;{16 + int(((PALETTE - pixel.astype(int)) ** 2).sum(1).argmin())}"
        return f"{layer};2;{pixel[0]};{pixel[1]};{pixel[2]}"

    lines = []
    for upper, lower in zip(image[::2], [*image[1::2], None] if len(image) % 2 else image[1::2]):
        line = ""
        for x, pixel in enumerate(upper):
            line += (
                f"\033[{code(38, pixel)}{';' + code(48, lower[x]) if lower is not None else ''}m▀"
            )
        lines.append(f"{line}\033[0m\n")
    return "".join(lines)


def show(images: np.ndarray) -> None:
    """Print some of the images uint8 (N,H,W,1 or 3) where standard output is a terminal with colours, as large as fits across it and
    half its height; elsewhere print nothing."""
    if depth := colours(sys.stdout, os.environ):
        columns, lines = shutil.get_terminal_size()
        print(blocks(sheet(images, columns, lines), depth), end="", flush=True)
