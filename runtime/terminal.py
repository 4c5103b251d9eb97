"""Images in a terminal: each half block ▀ shows two pixels, one above the other.

    show(images)          # uint8 (N,H,W,C): as many as fit across the terminal and half its height

The upper pixel is the character's colour, the lower one its background. Nothing is printed if the
output is not a terminal with colours.

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
TRUE_COLOUR = 2**24
FOREGROUND = 38  # in escape sequences
BACKGROUND = 48

# xterm's colours 16 to 255: a cube of 6x6x6 colours, then a ramp of grays
LEVELS = np.array([0, 95, 135, 175, 215, 255])
CUBE = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), -1).reshape(-1, 3)  # (216,3)
GRAYS = np.repeat(np.arange(8, 248, 10)[:, None], 3, 1)  # (24,3)
PALETTE = np.concatenate([CUBE, GRAYS])  # (240,3)


def colours(stream: Any, environment: Mapping[str, str]) -> int:
    """Return the number of colours that the terminal of `stream` shows: 2^24, 256 or 0.

    It is also 0 if `stream` is not a terminal, or if the user has turned colours off
    (https://no-color.org). The number is read from environment variables.
    """
    term = environment.get("TERM", "dumb")
    encoding = (getattr(stream, "encoding", None) or "").lower()
    if not stream.isatty() or term == "dumb" or not encoding.startswith("utf"):
        return 0
    if environment.get("NO_COLOR"):
        return 0
    if environment.get("COLORTERM") in ("truecolor", "24bit") or term.endswith("-direct"):
        return TRUE_COLOUR
    return 256 if "256color" in term else 0


def sheet(images: np.ndarray, width: int, height: int) -> np.ndarray:
    """Arrange the first images row by row on a black sheet of at most width x height pixels.

    uint8 (N,H,W,1 or 3) -> (h,w,3), h <= height, w <= width. Images are shrunk if not even one
    would fit, and never enlarged.
    """
    _, H, W, _ = images.shape
    scale = min(1.0, width / W, height / H)
    h = max(1, int(H * scale))
    w = max(1, int(W * scale))
    columns = max(1, (width + GAP) // (w + GAP))
    rows = max(1, (height + GAP) // (h + GAP))
    shown = images[: columns * rows]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    canvas = Image.new("RGB", (columns * (w + GAP) - GAP, rows * (h + GAP) - GAP))
    for i, image in enumerate(np.broadcast_to(shown, (*shown.shape[:3], 3))):
        tile = Image.fromarray(np.ascontiguousarray(image)).resize((w, h), Image.Resampling.LANCZOS)
        canvas.paste(tile, (i % columns * (w + GAP), i // columns * (h + GAP)))
    return np.asarray(canvas)


def colour_code(layer: int, pixel: np.ndarray, colours: int) -> str:
    """Return the escape code that sets `layer`, FOREGROUND or BACKGROUND, to a pixel's colour."""
    if colours == 256:
        squared_distances = ((PALETTE - pixel.astype(int)) ** 2).sum(1)  # (240,)
        return f"{layer};5;{16 + int(squared_distances.argmin())}"
    return f"{layer};2;{pixel[0]};{pixel[1]};{pixel[2]}"


def blocks(image: np.ndarray, colours: int) -> str:
    """Return an image as half blocks with escape sequences: uint8 (H,W,3) -> ceil(H / 2) lines.

    If H is odd, the terminal's own background shows below the last row.
    """
    lines = []
    for y in range(0, len(image), 2):
        line = ""
        for x in range(image.shape[1]):
            code = colour_code(FOREGROUND, image[y, x], colours)
            if y + 1 < len(image):
                code += ";" + colour_code(BACKGROUND, image[y + 1, x], colours)
            line += f"\033[{code}m▀"
        lines.append(f"{line}\033[0m\n")
    return "".join(lines)


def show(images: np.ndarray) -> None:
    """Print as many images, uint8 (N,H,W,1 or 3), as fit, if the terminal has colours."""
    depth = colours(sys.stdout, os.environ)
    if depth:
        # a character is two pixels high: the sheet takes half of the terminal's height
        width, height = shutil.get_terminal_size()
        print(blocks(sheet(images, width, height), depth), end="", flush=True)
