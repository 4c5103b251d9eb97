"""N images that were asked for: what they begin with, how they are walked to t = 0, in batches, on several processes.

    planned = plan(args, device)                                       # of Inference.py's command line
    parts = [reverse(planned, range(0, 8), seed=0, batch_size=4), ...]    # one for each process
    kept, predicted, x_0 = joined(parts, planned.order)

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from checkpoints import checkpoint
from Dataset import to_float, to_uint8
from DiffusionModel import DiffusionModel
from image_data.image_files import open_image
from runtime.suggestions import nearest
from sampling import editing, samplers
from sampling.guidance import Guided

SHOWN = 64  # images in the grids and the trajectory; samples.npz has all
A_CLASS = 8  # of each class there, with --class all
SAMPLER, USUAL = "unipc", 20  # where nothing else is said: see the table in the README
STEPS = {
    "heun": 10,
    "--mask": 100,
    "--interpolate": 50,
}  # where 20 are not the usual; ddpm takes all


def plan(args: Namespace, device: Any) -> Namespace:
    """What is to be made, with all that is wrong known before the first step. Raises ValueError or OSError.

    .model; .image to begin with (C,H,W) or None; .total images, of which .shown in grids, in .order and with .columns;
    their .labels or None; the .times to pass, of which .saved and .frames; .ask(indices) is the model that is sampled,
    .begin(noise) the x at the first time, .walk(asked, x, noise) the generator over times.
    """
    # without a checkpoint only the schedule is used, so the network is the smallest there is
    model = (
        checkpoint.load_model(args.ckpt, device, args.weights == "ema", args.ema_length).model
        if args.ckpt
        else DiffusionModel(width=4, mults=(1,), attention=(), blocks=1)
    )
    start = args.start_step or model.T
    saved = (
        sorted({0, model.T // 20, model.T // 2, model.T})
        if args.save_steps is None
        else args.save_steps
    )
    if args.save_steps is None and args.start_step:
        saved = sorted({0, *(t for t in saved if t < start), start})
    if start > model.T:
        raise ValueError(
            f"--start-step {start} is past T = {model.T} of this model: choose 1 to {model.T}"
        )
    if max(saved) > start:
        raise ValueError(
            f"--save-steps {max(saved)} is past t = {start}, where it starts: choose from 0 to {start}"
        )

    sampler = args.sampler or ("ddpm" if args.mask else "ddim" if args.interpolate else SAMPLER)
    usual = (
        STEPS["--mask"]
        if args.mask
        else STEPS["--interpolate"]
        if args.interpolate
        else STEPS.get(sampler, USUAL)
    )
    usual = start if sampler == "ddpm" and not args.mask else min(usual, start)
    variance = args.variance or model.variance
    if variance == "learned" and model.variance != "learned":
        raise ValueError("--variance learned needs a model trained with it: choose large or small")
    times = (
        samplers.time_grid(model, args.steps or usual, start, args.grid or "uniform", saved)
        if args.ckpt
        else sorted({round(t) for t in torch.linspace(0, start, args.frames).tolist()} | set(saved))
    )
    few = (
        times
        if len(times) <= args.frames
        else [times[round(i)] for i in torch.linspace(0, len(times) - 1, args.frames).tolist()]
    )

    if args.interpolate and len(times) < 3:
        raise ValueError("--interpolate needs at least 2 steps")
    if args.guidance_interval and args.guidance_interval[1] > model.T:
        raise ValueError(
            f"--guidance-interval ends past T = {model.T} of this model: choose steps from 0 to {model.T}"
        )
    labels, hidden = None, model.hparams["label_dropout"] > 0
    if (
        args.label is None and model.unet.classes and not hidden
    ):  # it was never asked for an image of no class
        args.label, args.num = "all", args.num or -(-16 // model.unet.classes)
    if args.guidance != 1 and not hidden:
        raise ValueError(
            "this model was trained with --label-dropout 0, and guidance needs what that hides: leave out --guidance"
        )
    if args.label is not None:
        wanted = chosen(args.label, model)
        total = (args.num or A_CLASS) * len(wanted) if len(wanted) > 1 else args.num or 16
        labels = [
            wanted[i % len(wanted)] for i in range(total)
        ]  # image i has class i of all, however many there are
        rows = len(wanted) if len(wanted) > 1 else 0
    else:
        total, rows = args.num or 16, 0
    columns = max(1, min(A_CLASS, total // rows, 1024 // rows)) if rows else 0
    shown = rows * columns if rows else min(SHOWN, total)
    order = (
        [column * rows + row for row in range(rows) for column in range(columns)]
        if rows
        else list(range(shown))
    )

    def ask(indices: range) -> Guided:
        y = None if labels is None else torch.tensor([labels[i] for i in indices], device=device)
        return Guided(
            model,
            y,
            args.guidance,
            args.guidance_interval or (0, model.T),
            clip=not args.interpolate,
        )

    image = (
        None
        if args.input_image is None
        else read_image(args.input_image, model if args.ckpt else None)
    )
    mask = None if args.mask is None else read_mask(args.mask, model)
    ends = [read_image(path, model).to(device) for path in args.interpolate or ()]
    latents: list[Tensor] = []  # (C,H,W) each
    if args.mask and args.input_image and ratio(args.mask) != ratio(args.input_image):
        raise ValueError(
            f"{args.mask} has not the proportions of {args.input_image}: give a mask of the same width and height"
        )

    def begin(indices: range, x: Tensor) -> Tensor:
        if ends and not latents:
            tqdm.write("looking for the latents of both images", file=sys.stderr)
            latents.extend(
                list(editing.invert(ask(range(1)), end[None], times[::-1]))[-1][1][0]
                for end in ends
            )
        if ends:
            return torch.stack(
                [editing.slerp(latents[0], latents[1], i / max(1, total - 1)) for i in indices]
            )
        if image is not None and mask is None:
            return model.q_sample(
                image.to(device).expand_as(x), torch.full((len(x),), start, device=device), x
            )
        return x

    def walk(asked: Guided, x: Tensor, noise: Any) -> Any:
        if mask is not None and image is not None:
            return editing.repaint(
                asked, x, times, noise, image.to(device), mask.to(device), args.variance or "small"
            )
        return samplers.sample(sampler, asked, x, times, noise, variance, args.eta or 0.0)

    return Namespace(
        model=model,
        image=image,
        saved=saved,
        frames=sorted({*few, *saved}),
        times=times,
        total=total,
        shown=shown,
        order=order,
        columns=columns,
        labels=labels,
        ask=ask,
        begin=begin,
        walk=walk,
    )


def chosen(text: str, model: Any) -> list[int]:
    """The labels that --class asks for: one by name or number, or all. Raises ValueError, in one line."""
    names, count = [name.lower() for name in model.hparams["class_names"]], model.unet.classes
    if not count:
        raise ValueError(
            "this model knows no classes: train one with --class-conditional, or leave out --class"
        )
    if text.lower() == "all":
        return list(range(count))
    if text.lower() in names:
        return [names.index(text.lower())]
    if text.isdecimal() and int(text) < count:
        return [int(text)]
    close = "" if text.isdecimal() else nearest(text, names)
    raise ValueError(
        f"unknown class {text!r}"
        + (f", did you mean {close}?" if close else ".")
        + f" Give all, a number from 0 to {count - 1}, or one of {', '.join(names[:20])}"
    )


def reverse(
    plan: Namespace, images: range, seed: int, batch_size: int
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], np.ndarray]:
    """The `images` with these numbers, as they were planned. x_t and x0_hat at the frames, of those that are shown:
    uint8 (n,H,W,C) for each t; and all final images (N,H,W,C)."""
    net = plan.model.unet
    wanted, nothing = set(plan.frames), np.zeros((0, net.size, net.size, net.depth), np.uint8)
    samples = [nothing]
    kept: dict[int, list[Any]] = {t: [nothing] for t in plan.frames}
    predicted: dict[int, list[Any]] = {t: [nothing] for t in plan.frames}
    with tqdm(
        total=len(images) * (len(plan.times) - 1),
        desc="denoising",
        unit="step",
        disable=images.start > 0,
        bar_format="{l_bar}{bar:12}| {elapsed} so far, {remaining} left",
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ) as bar:
        for first in range(0, len(images), batch_size):
            indices = images[first : first + batch_size]
            noise = samplers.Noise(
                seed, indices, (net.depth, net.size, net.size), plan.model.device
            )
            x = plan.begin(indices, noise())
            shown = max(0, min(len(indices), plan.shown - indices[0]))
            for t, x_t, x0_hat in plan.walk(plan.ask(indices), x, noise):
                if t in wanted and shown:
                    kept[t].append(pictures(x_t[:shown]))
                    predicted[t].append(pictures(x0_hat[:shown]))
                x = x_t
                bar.update(len(indices) if t else 0)
            samples.append(pictures(x))
    return (
        {t: np.concatenate(parts) for t, parts in kept.items()},
        {t: np.concatenate(parts) for t, parts in predicted.items()},
        np.concatenate(samples),
    )


def joined(
    parts: list[Any], order: list[int]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], np.ndarray]:
    """What `reverse` gave each process, as if it were one, with those that are shown in this order."""
    kept, predicted, samples = zip(*parts)
    return (
        {t: np.concatenate([part[t] for part in kept])[order] for t in kept[0]},
        {t: np.concatenate([part[t] for part in predicted])[order] for t in predicted[0]},
        np.concatenate(samples),
    )


def forward(model: Any, image: Tensor, frames: list[int], seed: int) -> dict[int, np.ndarray]:
    """x_t (1,H,W,C) of one image (C,H,W) for each t, Eq. 4, with the same eps throughout."""
    eps = samplers.Noise(seed, [0], tuple(image.shape))()  # (1,C,H,W)
    return {t: pictures(model.q_sample(image[None], torch.tensor([t]), eps)) for t in frames}


def read_image(path: Path, model: Any) -> Tensor:
    """(C,H,W) in [-1,1]: resized and cropped to what the model takes, or as it is where there is no model."""
    picture = open_image(path)
    if model is not None:
        if picture.size == (28, 28) and model.unet.size == 32:
            picture = ImageOps.expand(picture, 2)  # black, as the datasets are padded
        size = (model.unet.size, model.unet.size)
        picture = ImageOps.fit(
            picture.convert("L" if model.unet.depth == 1 else "RGB"), size, Image.Resampling.LANCZOS
        )
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return to_float(pixels.view(picture.height, picture.width, -1).permute(2, 0, 1))


def ratio(path: Path) -> float:
    """Width by height of an image file."""
    picture = open_image(path)
    return picture.width / picture.height


def read_mask(path: Path, model: Any) -> Tensor:
    """bool (H,W), true where the mask image is brighter than half: there it is painted anew. Raises ValueError."""
    mask = read_image(path, model).mean(dim=0) > 0
    if not mask.any() or mask.all():
        raise ValueError(
            f"{path} is {'white' if mask.all() else 'black'} all over: white is painted anew, black is kept"
        )
    return mask


def pictures(x: Tensor) -> np.ndarray:
    """(N,C,H,W) -> uint8 (N,H,W,C); -1 is 0 and 1 is 255 at every t."""
    return to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
