"""Generate the images of Inference.py: sample in batches on all processes, or noise an image.

    job = prepare(request, device)                  # from sampling/prepare.py
    images = generate_images(job, processes)        # None on all processes except the first

Letters in the shape columns: n and N images, C channels, H and W height and width.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from Dataset import to_uint8
from DiffusionModel import DiffusionModel
from runtime.processes import Processes
from runtime.progress_bar import progress_bar
from sampling.editing import invert, slerp
from sampling.input_images import EditInputs
from sampling.noise import Noise
from sampling.plan import SamplingPlan, compile_for_sampling, guided_model, sample_steps


@dataclass(frozen=True)
class ImageLayout:
    """The number of images, their labels or None, and the layout of the grids.

    columns: images in a row of a grid, 0 for a square grid. order: the indices of the images in the
    grid, row by row.
    """

    total: int
    labels: tuple[int, ...] | None
    columns: int
    order: tuple[int, ...]

    def labels_of(self, indices: range) -> list[int] | None:
        return None if self.labels is None else [self.labels[i] for i in indices]


@dataclass(frozen=True)
class SamplingJob:
    """Images to be sampled from a model. saved: t of the grids. frames: t of the trajectory."""

    model: DiffusionModel
    plan: SamplingPlan
    layout: ImageLayout
    edit: EditInputs
    saved: list[int]
    frames: list[int]
    seed: int
    batch_size: int


@dataclass(frozen=True)
class NoisingJob:
    """One image (C,H,W) to be noised. Only the schedule of the model is used.

    saved_only: whether the frames are only the saved steps, because the image is large.
    """

    model: DiffusionModel
    image: Tensor
    saved: list[int]
    frames: list[int]
    seed: int
    saved_only: bool


@dataclass(frozen=True)
class GeneratedImages:
    """The results: x_t and x0_hat of the images in the grid, and all images.

    frames, predicted: x_t and x0_hat, uint8 (n,H,W,C) for each t. A forward process has no x0_hat.
    images: uint8 (N,H,W,C).
    """

    frames: dict[int, np.ndarray]
    predicted: dict[int, np.ndarray]
    images: np.ndarray


# ---- sampling ----------------------------------------------------------------------------------


def generate_images(
    job: SamplingJob | NoisingJob, processes: Processes, compile_mode: str = "off"
) -> GeneratedImages | None:
    """Run the job on all processes. Returns the images on the first one and None on the others."""
    if isinstance(job, NoisingJob):
        processes.leave()
        return noise_images(job) if processes.is_first else None
    total, rank, world_size = job.layout.total, processes.global_rank, processes.world_size
    share = range(total * rank // world_size, total * (rank + 1) // world_size)
    if share:
        batch = min(job.batch_size, len(share))
        compile_for_sampling(job.model, job.plan, compile_mode, batch, processes.print)
    parts = processes.gather(sample_images(job, share))
    processes.leave()
    return join(parts, job.layout.order) if processes.is_first else None


def sample_images(job: SamplingJob, images: range) -> GeneratedImages:
    """Sample the images with these indices, in batches."""
    bar = progress_bar(
        title="denoising",
        total=len(images) * job.plan.steps,
        unit="step",
        disable=images.start > 0,
        bar_format="{l_bar}{bar:12}| {elapsed} so far, {remaining} left",
    )
    with bar:
        ends = invert_endpoints(job) if job.edit.endpoints and images else None
        batches = [no_images(job)]
        for first in range(0, len(images), job.batch_size):
            indices = images[first : first + job.batch_size]
            batches.append(sample_batch(job, indices, ends, bar))
    return concatenate(batches)


def sample_batch(
    job: SamplingJob, indices: range, ends: tuple[Tensor, Tensor] | None, bar: tqdm
) -> GeneratedImages:
    """Sample one batch. ends: the latents (C,H,W) of the two images of an interpolation."""
    layout, edit = job.layout, job.edit
    latents = None
    if ends is not None:
        shares = [i / max(1, layout.total - 1) for i in indices]
        latents = torch.stack([slerp(*ends, share) for share in shares])  # (n,C,H,W)
    steps = sample_steps(
        job.model,
        job.plan,
        indices,
        job.seed,
        layout.labels_of(indices),
        edit.start_image,
        edit.mask,
        latents,
        edit.conditions(len(indices)),
    )
    shown = max(0, min(len(indices), len(layout.order) - indices[0]))
    frames, predicted, last = {}, {}, None
    for t, x_t, x0_hat in steps:
        if t in job.frames:
            frames[t] = to_pictures(x_t[:shown])
            predicted[t] = to_pictures(x0_hat[:shown])
        last = x_t
        bar.update(len(indices) if t else 0)
    assert last is not None
    return GeneratedImages(frames, predicted, to_pictures(last))


def invert_endpoints(job: SamplingJob) -> tuple[Tensor, Tensor]:
    """The latents (C,H,W) of both images of an interpolation."""
    tqdm.write("encoding both images into latents", file=sys.stderr)
    guided = guided_model(job.model, job.plan, job.layout.labels_of(range(1)))
    times = job.plan.times[::-1]
    assert job.edit.endpoints
    latents = []
    for image in job.edit.endpoints:
        *_, (_, latent, _) = invert(guided, image[None], times)
        latents.append(latent[0])
    return latents[0], latents[1]


# ---- results -----------------------------------------------------------------------------------


def no_images(job: SamplingJob) -> GeneratedImages:
    """The result of a process that has no images to sample."""
    C, H, W = job.model.unet.shape
    none = np.zeros((0, H, W, C), np.uint8)
    nothing = dict.fromkeys(job.frames, none)
    return GeneratedImages(nothing, nothing, none)


def concatenate(parts: Sequence[GeneratedImages]) -> GeneratedImages:
    """Concatenate the images of several batches or processes."""
    times = parts[0].frames
    return GeneratedImages(
        frames={t: np.concatenate([part.frames[t] for part in parts]) for t in times},
        predicted={t: np.concatenate([part.predicted[t] for part in parts]) for t in times},
        images=np.concatenate([part.images for part in parts]),
    )


def join(parts: Sequence[GeneratedImages], order: Sequence[int]) -> GeneratedImages:
    """Concatenate the images of all processes, and put those of the grid in this order."""
    whole, rows = concatenate(parts), list(order)
    return GeneratedImages(
        frames={t: frame[rows] for t, frame in whole.frames.items()},
        predicted={t: frame[rows] for t, frame in whole.predicted.items()},
        images=whole.images,
    )


def noise_images(job: NoisingJob) -> GeneratedImages:
    """The forward process of one image. `images` holds x_t at the saved steps."""
    frames = noise_image(job.model, job.image, job.frames, job.seed)
    images = np.concatenate([frames[t] for t in job.saved])
    return GeneratedImages(frames, {}, images)


def noise_image(
    model: DiffusionModel, image: Tensor, times: Sequence[int], seed: int
) -> dict[int, np.ndarray]:
    """x_t uint8 (1,H,W,C) of one image (C,H,W) at each t, Eq. 4, Ho et al. 2020, with one eps."""
    eps = Noise(seed, [0], tuple(image.shape))()  # (1,C,H,W)
    return {t: to_pictures(model.q_sample(image[None], torch.tensor([t]), eps)) for t in times}


def to_pictures(x: Tensor) -> np.ndarray:
    """(N,C,H,W) -> uint8 (N,H,W,C). -1 becomes 0 and 1 becomes 255 at every t."""
    return to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
