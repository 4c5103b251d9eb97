"""Many samples of a model, in files that a later call goes on from and several processes share.

    how = plan(model, sampler="unipc", steps=20)
    folder = Path("runs/mnist/evaluation") / key(how, checkpoint)
    for rank in range(world): generate(model, how, folder, count=50_000, seed=0, rank=rank, world=world)
    images, cost = read(model, folder, 50_000, seed=0)              # uint8 (N,C,H,W), and what one of them took

Image i depends on (seed, i) alone, whoever draws it, and on the number of steps; where the model has classes it is of class
i mod K. A file `seed0-00000500.npz` holds the `CHUNK` images from number 500 on, as `arr_0` uint8 (n,H,W,C), and their `cost`.

Letters in the shape columns: N images, C channels, H and W height and width, K classes.
"""

import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from Dataset import to_uint8
from image_data.npz_files import NpzError, read_npz, write_npz
from sampling import generate as Generation
from sampling import samplers
from sampling.guidance import Guided

CHUNK = 500


def plan(
    model: Any,
    sampler: str = Generation.SAMPLER,
    steps: int | None = None,
    grid: str = "uniform",
    variance: str | None = None,
    eta: float = 0.0,
    guidance: float = 1.0,
    precision: str = "32-true",
    compiled: str = "",
) -> Namespace:
    """How the samples are to be drawn; steps: as many as `Generation` takes where nothing is said; compiled: in which mode of
    torch.compile, which rounds otherwise. Raises ValueError."""
    usual = (
        model.T
        if sampler == "ddpm"
        else min(model.T, Generation.STEPS.get(sampler, Generation.USUAL))
    )
    variance = variance or model.variance
    if variance == "learned" and model.variance != "learned":
        raise ValueError("--variance learned needs a model trained with it: choose large or small")
    if guidance != 1 and not (model.unet.classes and model.hparams["label_dropout"]):
        raise ValueError(
            "--guidance needs a model trained with --class-conditional and without --label-dropout 0: leave it out"
        )
    times = samplers.time_grid(model, steps or usual, model.T, grid)
    return Namespace(
        sampler=sampler,
        steps=len(times) - 1,
        grid=grid,
        variance=variance if sampler == "ddpm" else "",
        eta=eta if sampler == "ddim" else 0.0,
        guidance=guidance,
        precision=precision,
        **({"compiled": compiled} if compiled else {}),
    )


def drawn(model: Any, how: Namespace, indices: range, seed: int) -> Tensor:
    """The images with these numbers: uint8 (n,C,H,W), on the CPU."""
    net, device = model.unet, model.device
    noise = samplers.Noise(seed, indices, (net.depth, net.size, net.size), device)
    y = torch.tensor(indices, device=device) % net.classes if net.classes else None
    times = samplers.time_grid(model, how.steps, model.T, how.grid)
    with torch.autocast(device.type, torch.bfloat16, enabled=how.precision != "32-true"):
        *_, (_, x, _) = samplers.sample(
            how.sampler,
            Guided(model, y, how.guidance),
            noise(),
            times,
            noise,
            how.variance,
            how.eta,
        )
    return to_uint8(x).cpu()


def key(how: Namespace, *of: Any) -> str:
    """A name for the folder: the sampler, its steps, and a fingerprint of all that makes the images, `of` what else it is."""
    known = json.dumps([vars(how), *of], sort_keys=True)
    return f"{how.sampler}-{how.steps}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def file_of(folder: Path, seed: int, first: int) -> Path:
    """The file of the images from number `first` on."""
    return folder / f"seed{seed}-{first:08d}.npz"


def chunk(model: Any, file: Path, count: int) -> tuple[Tensor, np.ndarray] | None:
    """The first `count` images of a file, and the seconds and the evaluations of the network that one of them took, in batches of how
    many; None where it is not there, is damaged, or has fewer."""
    net = model.unet
    try:
        arrays = read_npz(file, ("arr_0", "cost"))
    except (FileNotFoundError, NpzError):
        return None
    images, cost = arrays["arr_0"], arrays["cost"]
    if (
        images.dtype != np.uint8
        or images.shape[1:] != (net.size, net.size, net.depth)
        or len(images) < count
        or cost.shape != (3,)
    ):
        return None
    return torch.from_numpy(images[:count]).permute(0, 3, 1, 2), cost


def parts(count: int) -> Iterator[tuple[int, int]]:
    """First number and number of images of every file."""
    return ((first, min(CHUNK, count - first)) for first in range(0, count, CHUNK))


def wanted(
    model: Any, folder: Path, count: int, seed: int, rank: int = 0, world: int = 1
) -> list[tuple[int, int]]:
    """First number and number of images of every file that is not there yet, of several processes every `world`-th."""
    return [
        (first, size)
        for first, size in list(parts(count))[rank::world]
        if chunk(model, file_of(folder, seed, first), size) is None
    ]


def generate(
    model: Any,
    how: Namespace,
    folder: Path,
    count: int,
    seed: int,
    batch_size: int = 100,
    rank: int = 0,
    world: int = 1,
    title: str = "sampling",
) -> None:
    """Write every file of `count` images that is not there yet, of several processes every `world`-th. Raises OSError."""
    mine, missing = list(parts(count))[rank::world], wanted(model, folder, count, seed, rank, world)
    if missing:  # what a device does once, at its first batch, is no cost of an image
        drawn(
            model,
            Namespace(**{**vars(how), "sampler": "ddim", "steps": 1}),
            range(min(batch_size, missing[0][1])),
            seed,
        )
    calls = [0]

    def count_images(_: Any, inputs: Any) -> None:
        calls[0] += len(inputs[0])

    with tqdm(
        total=sum(size for _, size in mine),
        initial=sum(size for _, size in mine) - sum(size for _, size in missing),
        desc=title,
        unit=" images",
        disable=rank > 0 or not missing,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ) as bar:
        hook = model.register_forward_pre_hook(count_images)
        try:
            for first, size in missing:
                began, calls[0], images = time.monotonic(), 0, []
                for start in range(first, first + size, batch_size):
                    images.append(
                        drawn(model, how, range(start, min(start + batch_size, first + size)), seed)
                    )
                    bar.update(len(images[-1]))
                cost = [(time.monotonic() - began) / size, calls[0] / size, min(batch_size, size)]
                arr_0 = torch.cat(images).permute(0, 2, 3, 1).numpy()
                write_npz(file_of(folder, seed, first), arr_0=arr_0, cost=cost)
        finally:
            hook.remove()


def read(model: Any, folder: Path, count: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    """`count` images that are there, uint8 (N,C,H,W), and the seconds and evaluations that one took, in batches of at most how many
    (they may have been drawn by several calls). Raises OSError where a file is missing."""
    found = []
    for first, size in parts(count):
        if (part := chunk(model, file_of(folder, seed, first), size)) is None:
            raise OSError(
                f"{file_of(folder, seed, first)} is missing or damaged: run the same command again"
            )
        found.append(part)
    images, costs = zip(*found)
    seconds, evaluations, _ = np.average(costs, axis=0, weights=[len(part) for part in images])
    return torch.cat(images), {
        "seconds": float(seconds),
        "evaluations": float(evaluations),
        "batch_size": int(max(c[2] for c in costs)),
    }
