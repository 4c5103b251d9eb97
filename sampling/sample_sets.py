"""Sets of samples in files. Later calls add missing files, and several processes share the work.

    plan = plan_sampling(model, sampler="unipc", steps=20)
    folder = Path("runs/mnist/evaluation") / folder_name(plan, checkpoint_sha256)
    write_samples(model, plan, folder, count=50_000, seed=0)     # in every process, with its rank
    images, cost = read_samples(model, folder, count=50_000, seed=0)   # uint8 (N,C,H,W)

Image i is a function of the plan and (seed, i), whichever process samples it; on a GPU, another
batch size rounds differently. With K classes its class is i mod K. The file `seed0-00000500.npz`
holds the images from index 500 as `arr_0`, uint8 (n,H,W,C). Its array `cost` has the seconds and
the network evaluations for one image, and the batch size.

Letters in the shape columns: N images, C channels, H and W height and width.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from Dataset import to_uint8
from DiffusionModel import DiffusionModel
from image_data.npz_files import NpzError, read_npz, write_npz
from runtime.progress_bar import progress_bar
from sampling.plan import SamplingPlan, labels_in_turn, sample_steps

IMAGES_PER_FILE = 500


@dataclass(frozen=True)
class SampleCost:
    """The cost of one image: seconds and network evaluations, measured at this batch size."""

    seconds: float
    evaluations: float
    batch_size: int


@dataclass
class EvaluationCounter:
    """The number of images on which the network was evaluated."""

    images: int = 0


# ---- names -------------------------------------------------------------------------------------

# Lightning's names of two precisions, which are part of the names of existing folders.
PRECISION_NAMES = {"32": "32-true", "bf16": "bf16-mixed"}


def plan_settings(plan: SamplingPlan) -> dict[str, Any]:
    """The settings of a set of samples, for reports and for the hash in the folder's name.

    Never change names or values: existing folders could no longer be found.
    """
    settings: dict[str, Any] = {
        "sampler": plan.sampler,
        "steps": plan.steps,
        "grid": plan.grid,
        "variance": plan.variance,
        "eta": plan.eta,
        "guidance": plan.guidance,
        "precision": PRECISION_NAMES.get(plan.precision, plan.precision),
    }
    if plan.guide:
        low, high = plan.guidance_interval
        settings["guide"] = [plan.guide.name, low, None if math.isinf(high) else high]
    if plan.compile_mode != "off":
        settings["compiled"] = plan.compile_mode
    return settings


def folder_name(plan: SamplingPlan, *identity: str) -> str:
    """The name of a set's folder: sampler, steps, and a hash of the plan and the model.

    identity: everything else that determines the images, such as the checkpoint's sha256.
    """
    hashed = json.dumps([plan_settings(plan), *identity], sort_keys=True)
    digest = hashlib.sha256(hashed.encode()).hexdigest()
    return f"{plan.sampler}-{plan.steps}-{digest[:8]}"


def sample_file(folder: Path, seed: int, first: int) -> Path:
    """The file of the images from index `first`."""
    return folder / f"seed{seed}-{first:08d}.npz"


def file_ranges(count: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """The indices of the images in each of this process's files, of a set of `count` images."""
    ranges = [
        range(first, min(first + IMAGES_PER_FILE, count))
        for first in range(0, count, IMAGES_PER_FILE)
    ]
    return ranges[rank::world_size]


# ---- sampling ----------------------------------------------------------------------------------


def sample_batch(model: DiffusionModel, plan: SamplingPlan, indices: range, seed: int) -> Tensor:
    """Sample the images with these indices in one batch: uint8 (N,C,H,W), on the CPU."""
    labels = labels_in_turn(model, indices)
    *_, (_, x, _) = sample_steps(model, plan, indices, seed, labels)
    return to_uint8(x).cpu()


def missing_files(
    model: DiffusionModel,
    folder: Path,
    count: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[range]:
    """The indices of the images in each of this process's files that is missing or damaged."""
    return [
        indices
        for indices in file_ranges(count, rank, world_size)
        if read_file(model, folder, indices, seed) is None
    ]


def write_samples(
    model: DiffusionModel,
    plan: SamplingPlan,
    folder: Path,
    count: int,
    seed: int,
    batch_size: int = 100,
    rank: int = 0,
    world_size: int = 1,
    title: str = "sampling",
) -> None:
    """Write this process's missing files of a set of `count` images. Raises OSError."""
    missing = missing_files(model, folder, count, seed, rank, world_size)
    if missing:
        # warm up: the one-time work of the first batch is not part of an image's cost
        one_step = replace(plan, sampler="ddim", times=(model.T, 0))
        sample_batch(model, one_step, range(min(batch_size, len(missing[0]))), seed)
    total = sum(len(indices) for indices in file_ranges(count, rank, world_size))
    bar = progress_bar(
        title=title,
        total=total,
        initial=total - sum(len(indices) for indices in missing),
        unit=" images",
        disable=rank > 0 or not missing,
    )
    models = [model, plan.guide.model] if plan.guide else [model]
    with bar, count_evaluations(models) as counter:
        for indices in missing:
            write_file(model, plan, folder, indices, seed, batch_size, counter, bar)


def write_file(
    model: DiffusionModel,
    plan: SamplingPlan,
    folder: Path,
    indices: range,
    seed: int,
    batch_size: int,
    counter: EvaluationCounter,
    bar: tqdm,
) -> None:
    """Sample the images of one file in batches and write it. Raises OSError."""
    start_time = time.monotonic()
    counter.images = 0
    batches = []
    for first in range(0, len(indices), batch_size):
        images = sample_batch(model, plan, indices[first : first + batch_size], seed)
        batches.append(images)
        bar.update(len(images))
    seconds = time.monotonic() - start_time
    size = len(indices)
    cost = [seconds / size, counter.images / size, min(batch_size, size)]
    arr_0 = torch.cat(batches).permute(0, 2, 3, 1).numpy()
    write_npz(sample_file(folder, seed, indices[0]), arr_0=arr_0, cost=cost)


@contextlib.contextmanager
def count_evaluations(models: list[DiffusionModel]) -> Iterator[EvaluationCounter]:
    """Count the images on which the networks are evaluated within the block."""
    counter = EvaluationCounter()

    def count(_: Any, inputs: Any) -> None:
        counter.images += len(inputs[0])

    hooks = [model.register_forward_pre_hook(count) for model in models]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


# ---- reading -----------------------------------------------------------------------------------


def read_file(
    model: DiffusionModel, folder: Path, indices: range, seed: int
) -> tuple[Tensor, np.ndarray] | None:
    """The images uint8 (N,C,H,W) of one file and their cost (3,), or None if it is not complete.

    A file may have more images than `indices`. Then only the first ones are returned.
    """
    C, H, W = model.unet.shape
    try:
        arrays = read_npz(sample_file(folder, seed, indices[0]), ("arr_0", "cost"))
    except (FileNotFoundError, NpzError):
        return None
    images, cost = arrays["arr_0"], arrays["cost"]
    if (
        images.dtype != np.uint8
        or images.shape[1:] != (H, W, C)
        or len(images) < len(indices)
        or cost.shape != (3,)
    ):
        return None
    return torch.from_numpy(images[: len(indices)]).permute(0, 3, 1, 2), cost


def read_samples(
    model: DiffusionModel, folder: Path, count: int, seed: int
) -> tuple[Tensor, SampleCost]:
    """The first `count` images of a set, uint8 (N,C,H,W), and the mean cost of one image.

    Files may have been written with different batch sizes; the largest one is reported. Raises
    OSError if a file is missing.
    """
    sets, costs = [], []
    for indices in file_ranges(count):
        contents = read_file(model, folder, indices, seed)
        if contents is None:
            file = sample_file(folder, seed, indices[0])
            raise OSError(f"{file} is missing or damaged: run the same command again")
        sets.append(contents[0])
        costs.append(contents[1])
    sizes = [len(images) for images in sets]
    seconds, evaluations, _ = np.average(costs, axis=0, weights=sizes)
    batch_size = max(cost[2] for cost in costs)
    return torch.cat(sets), SampleCost(float(seconds), float(evaluations), int(batch_size))
