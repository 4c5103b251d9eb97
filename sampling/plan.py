"""The settings of sampling, checked once, and the loop from x_T to x_0.

    plan = plan_sampling(model, sampler="unipc", steps=20)
    for t, x_t, x0_hat in sample_steps(model, plan, range(8, 16), seed=0): ...

Image i is a function of the plan, its label and (seed, i). On a CPU it does not depend on the batch
or the process in which it is sampled; on a GPU, another batch size rounds differently.

Letters in the shape columns: N images, C channels, K channels of a condition, H and W height and
width.
"""

import math
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from DiffusionModel import DiffusionModel
from runtime.compiling import compile_network
from runtime.devices import tf32
from sampling.editing import repaint
from sampling.guidance import Guide, Guided
from sampling.noise import Noise
from sampling.samplers import Step, sample
from sampling.time_grid import time_grid

# The defaults of --sampler and --steps: see docs/samplers-and-presets.md and benchmarks/RESULTS.md.
# heun and autoguidance need two evaluations a step and take half as many steps. Classifier-free
# guidance also needs two, but keeps 20 steps, so that a GIF of them has enough frames.
DEFAULT_SAMPLER = "unipc"
DEFAULT_EVALUATIONS = 20
# Autoguidance applies from t = T down to this fraction of T.
AUTOGUIDANCE_END = 0.2
GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class SamplingPlan:
    """The settings of sampling. Create it with `plan_sampling`, which checks that they fit the
    model.

    times: the steps t, from the first down to 0.
    variance: the variance of ddpm, "" for all other samplers.
    eta: the eta of ddim, 0 for all other samplers.
    guide: the worse model of autoguidance, None for classifier-free guidance.
    guidance_interval: the range of t, both ends included, in which guidance applies.
    clip: whether x0_hat is clipped to [-1, 1].
    precision: "32", "tf32" or "bf16".
    compile_mode: the mode of torch.compile that the network runs in, or "off".
    """

    sampler: str
    times: tuple[int, ...]
    grid: str
    variance: str
    eta: float
    guidance: float
    guide: Guide | None
    guidance_interval: tuple[float, float]
    clip: bool
    precision: str
    compile_mode: str

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def evaluations(self) -> int:
        """The largest number of network evaluations for an image; RePaint takes more."""
        low, high = self.guidance_interval
        guided = self.guidance != 1
        evaluations = [2 if guided and low <= t <= high else 1 for t in self.times[:-1]]
        return sum(evaluations) * (2 if self.sampler == "heun" else 1)


def plan_sampling(
    model: DiffusionModel,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str = "uniform",
    variance: str | None = None,
    eta: float = 0.0,
    guidance: float = 1.0,
    guide: Guide | None = None,
    guidance_interval: tuple[float, float] | None = None,
    start: int | None = None,
    keep: Iterable[int] = (),
    clip: bool = True,
    precision: str = "32",
    compile_mode: str = "off",
    evaluations: int | None = None,
) -> SamplingPlan:
    """Return the checked plan. Raises ValueError, in one line, if it does not fit the model.
    sampler, steps, variance, guidance_interval: None for the default.
    guide: the worse model of autoguidance, see `guidance.choose_guidance`.
    start: the first t, None for T.
    keep: values of t that are added to the times of the `steps` steps.
    evaluations: instead of `steps`, the largest number of network evaluations for an image.
    """
    sampler = sampler or DEFAULT_SAMPLER
    variance = variance or model.variance
    start = start or model.T
    check_start(model, start)
    if variance == "learned" and model.variance != "learned":
        raise ValueError("--variance learned needs a model trained with it: choose large or small")
    check_guidance(model, guidance, guide, guidance_interval)
    steps = steps or default_steps(sampler, start, autoguidance=guide is not None)
    lowest = model.T * AUTOGUIDANCE_END if guide else 0
    plan = SamplingPlan(
        sampler=sampler,
        times=(),
        grid=grid,
        variance=variance if sampler == "ddpm" else "",
        eta=eta if sampler == "ddim" else 0.0,
        guidance=guidance,
        guide=guide,
        guidance_interval=guidance_interval or (lowest, math.inf),
        clip=clip,
        precision=precision,
        compile_mode=compile_mode,
    )
    counts = range(min(evaluations, start), 0, -1) if evaluations else [steps]
    plans = (replace(plan, times=tuple(time_grid(model, n, start, grid, keep))) for n in counts)
    return next(plans) if not evaluations else within(plans, evaluations)


def within(plans: Iterable[SamplingPlan], evaluations: int) -> SamplingPlan:
    """The first plan with at most this many evaluations. Raises ValueError if there is none."""
    fewest = math.inf
    for plan in plans:
        if plan.evaluations <= evaluations:
            return plan
        fewest = min(fewest, plan.evaluations)
    raise ValueError(
        f"--evaluations {evaluations} is too few: one step plus those of --save-steps need {fewest}"
    )


def default_steps(sampler: str, start: int, autoguidance: bool) -> int:
    """The default number of steps from t = `start`. ddpm takes all of them."""
    if sampler == "ddpm":
        return start
    twice = sampler == "heun" or autoguidance
    return min(start, DEFAULT_EVALUATIONS // 2 if twice else DEFAULT_EVALUATIONS)


def check_start(model: DiffusionModel, start: int) -> None:
    """Raise ValueError if `start` is beyond the model's T."""
    if start > model.T:
        raise ValueError(
            f"--start-step {start} is past T = {model.T} of this model: choose 1 to {model.T}"
        )


def check_guidance(
    model: DiffusionModel,
    guidance: float,
    guide: Guide | None,
    interval: tuple[float, float] | None,
) -> None:
    """Raise ValueError if the model cannot be guided, or not in this interval of t."""
    if interval and interval[1] > model.T:
        raise ValueError(
            f"--guidance-interval ends past T = {model.T} of this model: "
            f"choose steps from 0 to {model.T}"
        )
    if interval and guidance == 1:
        raise ValueError("--guidance-interval needs a strength: add --guidance")
    by_label = guidance != 1 and guide is None
    if by_label and not (model.unet.classes and model.settings.label_dropout):
        raise ValueError(
            "--guidance needs a model trained with --class-conditional and --label-dropout above "
            "0, or an early average in the checkpoint: leave it out"
        )


def labels_in_turn(model: DiffusionModel, indices: range) -> list[int] | None:
    """The labels i mod K of images i for a model with K classes, or None without classes.

    Clusters are as frequent as among the training images: the multiples of the golden ratio, modulo
    1, are spread evenly, also in any range of images.
    """
    classes, shares = model.unet.classes, model.settings.cluster_shares
    if not classes:
        return None
    if not shares:
        return [i % classes for i in indices]
    limits = list(accumulate(shares))
    return [min(bisect(limits, i * GOLDEN_RATIO % 1), classes - 1) for i in indices]


def guided_model(
    model: DiffusionModel,
    plan: SamplingPlan,
    labels: Sequence[int] | None,
    condition: Tensor | None = None,
) -> Guided:
    """The model with this plan's guidance. labels, condition (N,K,H,W): one for each image of a
    batch, or None."""
    y = None if labels is None else torch.tensor(labels, device=model.device)
    guide = plan.guide.model if plan.guide else None
    return Guided(model, y, plan.guidance, plan.guidance_interval, plan.clip, guide, condition)


def sample_steps(
    model: DiffusionModel,
    plan: SamplingPlan,
    indices: range,
    seed: int,
    labels: Sequence[int] | None = None,
    start_image: Tensor | None = None,
    mask: Tensor | None = None,
    latents: Tensor | None = None,
    condition: Tensor | None = None,
) -> Iterator[Step]:
    """Yield t, x_t and x0_hat (N,C,H,W) of the images with these indices at every t of the plan.

    labels: one for each image; None for unconditional images.
    start_image (C,H,W): without a mask, start from this image, noised to the first t (SDEdit).
    mask (H,W): start from noise, and keep `start_image` where the mask is false (RePaint).
    latents (N,C,H,W): start from these instead of noise.
    condition (N,K,H,W): for an image-conditional model.
    """
    device = model.device
    noise = Noise(seed, indices, model.unet.shape, device)
    guided = guided_model(model, plan, labels, condition)
    x = noise()  # (N,C,H,W)
    if start_image is not None and mask is not None:
        steps = repaint(guided, x, plan.times, noise, start_image, mask, plan.variance)
    else:
        if latents is not None:
            x = latents
        elif start_image is not None:
            t = torch.full((len(x),), plan.times[0], device=device)
            x = model.q_sample(start_image.expand_as(x), t, x)
        steps = sample(plan.sampler, guided, x, plan.times, noise, plan.variance, plan.eta)
    return autocast_each(steps, device.type, plan.precision)


def autocast_each(steps: Iterator[Step], device: str, precision: str) -> Iterator[Step]:
    """Compute every step in this precision, without changing the caller's precision."""
    while True:
        with (
            torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
            tf32(precision == "tf32"),
        ):
            step = next(steps, None)
        if step is None:
            return
        yield step


def compile_for_sampling(
    model: DiffusionModel, plan: SamplingPlan, mode: str, images: int, say: Callable[..., Any]
) -> bool:
    """Compile the networks of the plan for this batch size. Returns whether this succeeded."""
    if plan.guide:
        return compile_network(model, mode, images, plan.precision, say) and compile_network(
            plan.guide.model, mode, images, plan.precision, say
        )
    together = images if plan.guidance == 1 else 2 * images  # with and without the label
    return compile_network(model, mode, together, plan.precision, say)
