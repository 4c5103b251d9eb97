"""Read images and masks in the size and with the channels of a model: for editing, or for a model
that is conditional on an image.

Letters in the shape columns: N images, C channels, K channels of a condition, H and W height and
width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from Dataset import to_float
from diffusion.conditions import enlarge, factor_of, make_condition, random_masks
from DiffusionModel import DiffusionModel
from image_data.image_files import open_image, resize_and_crop
from runtime.image_size import Size, height_and_width, size_of
from runtime.randomness import Purpose, generator

# A file in a run directory: an unseen image. The condition is made from it if no image is given.
EXAMPLE_CONDITION = "samples/condition.png"
REMEDY = "give another file"


@dataclass(frozen=True)
class EditInputs:
    """The images from which sampling starts instead of noise alone; for an image-conditional model,
    its condition.

    start_image (C,H,W): from --input-image. mask (H,W): from --mask, true where the image is
    repainted. endpoints, (C,H,W) each: the two images from --interpolate. condition (K,H,W): from
    --condition-image. notes: lines about these images, such as how they were resized.
    """

    start_image: Tensor | None = None
    mask: Tensor | None = None
    endpoints: tuple[Tensor, Tensor] | None = None
    condition: Tensor | None = None
    notes: tuple[str, ...] = ()

    def conditions(self, count: int) -> Tensor | None:
        """The same condition for a batch of images, (count,K,H,W)."""
        return None if self.condition is None else self.condition.expand(count, -1, -1, -1)


def read_edit_inputs(
    model: DiffusionModel,
    input_image: Path | None,
    mask: Path | None,
    interpolate: tuple[Path, Path] | None,
) -> EditInputs:
    """Read the files of these flags to the model's device. Raises ValueError or OSError."""
    device = model.device
    start_image = None if input_image is None else read_image(input_image, model).to(device)
    mask_values = None if mask is None else read_mask(mask, model).to(device)
    endpoints = None
    if interpolate:
        first, last = (read_image(path, model).to(device) for path in interpolate)
        endpoints = (first, last)
    if mask and input_image:
        check_aspect_ratio(mask, input_image)
    paths = interpolate or ([input_image] if input_image else [])
    notes = [describe_fit(path, model.unet.size) for path in paths]
    return EditInputs(start_image, mask_values, endpoints, notes=tuple(filter(None, notes)))


def read_image(path: Path, model: DiffusionModel | None = None) -> Tensor:
    """Read an image file as (C,H,W) in [-1,1], resized and cropped if a model is given. Raises
    ValueError, in one line."""
    if model is not None:
        return read_resized(path, model.unet.size, model.unet.depth)
    return to_tensor(open_image(path, remedy=REMEDY))


def read_resized(path: Path, size: Size, depth: int, pad: bool = True) -> Tensor:
    """Read an image file as (depth,H,W) in [-1,1], resized and cropped to a size.

    pad: pad 28x28 to 32x32 instead of resizing it, as in the datasets. Raises ValueError, in one
    line.
    """
    picture = open_image(path, remedy=REMEDY)
    if pad and is_padded(picture, size):
        picture = ImageOps.expand(picture, 2)  # with black
    return to_tensor(resize_and_crop(picture.convert("L" if depth == 1 else "RGB"), size))


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as (C,H,W) in [-1,1]."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return to_float(pixels.view(picture.height, picture.width, -1).permute(2, 0, 1))


def read_condition(model: DiffusionModel, path: Path, mask: Path | None, seed: int) -> Tensor:
    """Make the condition (K,H,W) from an image file in the same way as in training.

    For "downscale:N", an image of the size of the model, padded if necessary, is downscaled; any
    other is resized to the low resolution. mask: for "mask"; without one, it is random as in
    training. Raises ValueError or OSError.
    """
    kind, depth, size = model.settings.condition, model.unet.depth, model.unet.size
    if kind == "pairs":  # images of a folder are resized, never padded
        return read_resized(path, size, model.unet.condition_depth, pad=False)
    given_size = condition_size(model, path)
    if given_size != size:
        small = read_resized(path, given_size, depth, pad=False)
        return enlarge(small[None], factor_of(kind))[0]
    height, width = height_and_width(size)
    x = read_resized(path, size, depth)[None]
    hidden = None
    if kind == "mask" and mask:
        check_aspect_ratio(mask, path)
        hidden = read_mask(mask, model)[None, None]
    elif kind == "mask":
        random = generator("cpu", seed, Purpose.CONDITION)
        hidden = random_masks(1, height, width, random, x.device)
    return make_condition(kind, x, hidden)[0]


def condition_size(model: DiffusionModel, path: Path) -> Size:
    """The size to which the image of a condition is resized: the model's. For "downscale:N" it is
    the model's divided by N, unless the image has the model's size or is padded to it. Raises
    ValueError, in one line."""
    size, factor = model.unet.size, factor_of(model.settings.condition)
    height, width = height_and_width(size)
    picture = open_image(path, remedy=REMEDY)
    if not factor or picture.size == (width, height) or is_padded(picture, size):
        return size
    return size_of(height // factor, width // factor)


def is_padded(picture: Image.Image, size: Size) -> bool:
    """Whether a picture is padded to this size instead of being resized."""
    return picture.size == (28, 28) and size == 32


def describe_fit(path: Path, size: Size, pad: bool = True) -> str:
    """A line that says how `read_resized` fits an image, or "" if it already has that size."""
    picture = open_image(path)
    height, width = height_and_width(size)
    if picture.size == (width, height):
        return ""
    fit = "resized and cropped"
    if picture.width * height == picture.height * width:
        fit = "padded with black" if pad and is_padded(picture, size) else "resized"
    return f"{path}: {picture.width}x{picture.height}, {fit} to {width}x{height} (width x height)"


def read_mask(path: Path, model: DiffusionModel) -> Tensor:
    """Read a mask as bool (H,W), true where it is brighter than mid-gray. Raises ValueError."""
    mask = read_image(path, model).mean(dim=0) > 0
    if mask.all() or not mask.any():
        colour = "white" if mask.all() else "black"
        raise ValueError(f"{path} is {colour} all over: white is repainted, black is kept")
    return mask


def check_aspect_ratio(mask: Path, image: Path) -> None:
    """Raise ValueError, in one line, unless both files have the same aspect ratio."""
    if aspect_ratio(mask) != aspect_ratio(image):
        raise ValueError(
            f"{mask} does not have the aspect ratio of {image}: "
            "give a mask of the same width and height"
        )


def aspect_ratio(path: Path) -> float:
    """The width of an image file divided by its height."""
    picture = open_image(path)
    return picture.width / picture.height
