"""The range of pixel values that is scaled to 0 (black) .. 255 (white).

    values = find_range(paths)                     # of a dataset: ValueRange(0, 4095, "12 bits")
    values.to_8_bits(image)                        # uint8 (H,W)

Images of 8 bits have a known range. Gray images of 16 or 32 bits or of floating-point values do
not state which range they use. It is found once for a whole dataset, so that relative brightness
is kept: a darker image stays darker.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

BITS = (8, 10, 12, 14, 16)  # of cameras, scanners and microscopes


@dataclass(frozen=True)
class ValueRange:
    """The pixel values of black and white. name: how they were found, for messages."""

    low: float
    high: float
    name: str

    @classmethod
    def given(cls, ends: tuple[float, float]) -> "ValueRange":
        low, high = ends
        return cls(float(low), float(high), "given")

    def __str__(self) -> str:
        return f"{self.name}, {self.low:g} to {self.high:g}"

    def to_8_bits(self, image: Image.Image) -> np.ndarray:
        """Scale the values of an image to uint8 (H,W), clipped to the range. Raises ValueError, in
        one line, if one is not finite."""
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("there are pixels that are not finite numbers")
        scaled = (values - self.low) * (255 / (self.high - self.low))
        return scaled.clip(0, 255).round().astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Whether this is a gray image whose values may exceed 0 to 255."""
    return image.mode.startswith(("I", "F"))


def find_range(paths: Iterable[Path]) -> ValueRange | None:
    """The standard range of all images with `is_deep`, or None if there are none.

    Raises ValueError if their values fit no usual range. Unreadable files are skipped.
    """
    return choose_range(deep_images(paths))


def deep_images(paths: Iterable[Path]) -> Iterator[Image.Image]:
    for path in paths:
        try:
            with Image.open(path) as image:
                if is_deep(image):
                    copy = image.copy()  # this reads all of it
                    yield copy
        except (OSError, SyntaxError, Image.DecompressionBombError):
            continue


def choose_range(images: Iterable[Image.Image]) -> ValueRange | None:
    """The smallest usual range that contains all values of these images; None without images.

    Raises ValueError, in one line, if there is none, or if a value is not finite.
    """
    low, high, fractions = math.inf, -math.inf, False
    for image in images:
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("there are pixels that are not finite numbers: convert the images")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        fractions |= image.mode.startswith("F")
    if low > high:
        return None
    if fractions and low >= 0 and high <= 1:
        return ValueRange(0, 1, "fractions")
    if fractions and low >= -1 and high <= 1:
        return ValueRange(-1, 1, "fractions")
    for bits in BITS:
        if not fractions and low >= 0 and high < 2**bits:
            return ValueRange(0, 2**bits - 1, f"{bits} bits")
    raise ValueError(
        f"pixel values from {low:g} to {high:g} fit no standard range: "
        f"give --value-range={low:g},{high:g} for a dataset, or convert the images to 8 bits"
    )
