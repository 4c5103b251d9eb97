"""Turn the settings of Inference.py into a job: load the model, read images, check everything.

request = ImageRequest(checkpoint=Path("runs/cifar10"), num=8)
job = prepare(request, "cpu")           # a SamplingJob; a NoisingJob without a checkpoint
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from checkpoints.checkpoint import load_model
from checkpoints.loaded_model import LoadedModel
from diffusion.settings import ModelSettings, check_settings, read_schedule
from DiffusionModel import DiffusionModel
from runtime.flags import flag_of
from sampling.arrangement import arrange_images, is_edit
from sampling.generate import NoisingJob, SamplingJob
from sampling.guidance import Guide, choose_guidance
from sampling.image_request import ImageRequest
from sampling.input_images import (
    EXAMPLE_CONDITION,
    EditInputs,
    condition_size,
    describe_fit,
    read_condition,
    read_edit_inputs,
    read_image,
)
from sampling.output_files import check_writable
from sampling.plan import SamplingPlan, plan_sampling

DEFAULT_STEPS_WITH_MASK = 100
DEFAULT_STEPS_TO_INTERPOLATE = 50

# The size of 512 x 512 pixels in RGB. If a larger image is noised, only the saved steps are kept.
LARGE_IMAGE = 3 * 512**2


def prepare(request: ImageRequest, device: str | torch.device) -> SamplingJob | NoisingJob:
    """Load the model, read the images and check everything. Raises ValueError or OSError."""
    if request.checkpoint is None:
        return prepare_noising(request)
    loaded = load_model(request.checkpoint, device, request.ema, request.ema_length)
    model = loaded.model
    check_condition_flags(request, model.settings.condition)
    start = request.start_step or model.T
    saved = saved_steps(request, model.T, start)
    layout = arrange_images(request, model)
    plan = plan_request(request, loaded, saved)
    if model.settings.condition:
        edit = requested_condition(request, loaded)
    else:
        edit = read_edit_inputs(model, request.input_image, request.mask, request.interpolate)
    return SamplingJob(
        model=model,
        plan=plan,
        layout=layout,
        edit=edit,
        saved=saved,
        frames=frame_times(plan.times, request.frames, saved),
        seed=request.seed,
        batch_size=request.batch_size,
    )


def prepare_to_write(
    request: ImageRequest, device: str | torch.device, writes: bool
) -> SamplingJob | NoisingJob:
    """`prepare`, and check the output folder if this process writes to it. Raises ValueError
    or OSError."""
    try:
        job = prepare(request, device)
        if writes:
            check_writable(request.out)
    except OSError as error:
        if not error.filename:
            raise
        message = f"{error.filename}: {error.strerror}; choose another path"
        raise ValueError(message) from None
    return job


def check_condition_flags(request: ImageRequest, condition: str) -> None:
    """Raise ValueError unless the flags suit a model with this condition, "" for none."""
    if not condition:
        if request.condition_image:
            raise ValueError(
                "--condition-image needs a model trained with --condition: train one, or edit the "
                "image with --input-image"
            )
        return
    if request.input_image or request.interpolate:
        raise ValueError(
            f"--input-image and --interpolate do not apply to an image-conditional model "
            f"({condition}): give --condition-image"
        )
    if request.mask and condition != "mask":
        raise ValueError(
            f"--mask is for models trained with --condition mask, not {condition}: leave it out"
        )


def requested_condition(request: ImageRequest, loaded: LoadedModel) -> EditInputs:
    """The condition of a request, by default made from an unseen image of the run. Raises
    ValueError or OSError, in one line."""
    path, notes = request.condition_image, []
    if path is None:
        path = loaded.path.resolve().parent.parent / EXAMPLE_CONDITION
        if not path.is_file():
            raise ValueError(
                f"this model is conditional on an image ({loaded.model.settings.condition}): "
                "give --condition-image"
            )
        notes.append(f"the condition is made from an unseen image of the run, {path}")
    condition = read_condition(loaded.model, path, request.mask, request.seed)
    size = condition_size(loaded.model, path)
    pad = size == loaded.model.unet.size and loaded.model.settings.condition != "pairs"
    if note := describe_fit(path, size, pad):
        notes.append(note)
    return EditInputs(condition=condition.to(loaded.model.device), notes=tuple(notes))


def prepare_noising(request: ImageRequest) -> NoisingJob:
    """Read the image to be noised, at its own size. Raises ValueError, in one line."""
    # Only the schedule is used, so the network is as small as possible. Parameterization x0 allows
    # schedules with alpha_bar(T) = 0.
    chosen = ModelSettings(
        T=request.T,
        schedule=request.schedule,
        parameterization="x0",
        width=4,
        mults=(1,),
        attention=(),
        blocks=1,
    )
    settings = asdict(read_schedule(chosen))
    check_settings(settings, flag_of)
    model = DiffusionModel(**settings)
    saved = saved_steps(request, model.T, model.T)
    evenly = torch.linspace(0, model.T, request.frames).tolist()
    times = sorted({round(t) for t in evenly} | set(saved))
    frames = frame_times(times, request.frames, saved)
    assert request.input_image is not None
    image = read_image(request.input_image)
    large = image.numel() > LARGE_IMAGE
    saved_only = large and len(frames) > len(set(saved))
    return NoisingJob(
        model=model,
        image=image,
        saved=saved,
        frames=sorted(set(saved)) if saved_only else frames,
        seed=request.seed,
        saved_only=saved_only,
    )


def saved_steps(request: ImageRequest, T: int, start: int) -> list[int]:
    """The t at which grids are saved: those of the request, or by default 0, T/20, T/2 and the
    first t. Raises ValueError, in one line."""
    if request.save_steps is None:
        defaults = {0, T // 20, T // 2, T}
        if request.start_step is None:
            return sorted(defaults)
        return sorted({0, start, *(t for t in defaults if t < start)})
    last = max(request.save_steps)
    if last > start:
        raise ValueError(
            f"--save-steps {last} is past t = {start}, the largest: choose from 0 to {start}"
            + ("" if request.checkpoint else f", or give --T {last}")
        )
    return sorted(request.save_steps)


def frame_times(times: Sequence[int], most: int, saved: list[int]) -> list[int]:
    """At most `most` evenly spread times and the saved ones, in increasing order."""
    if len(times) > most:
        evenly = torch.linspace(0, len(times) - 1, most).tolist()
        times = [times[round(i)] for i in evenly]
    return sorted({*times, *saved})


def plan_request(request: ImageRequest, loaded: LoadedModel, saved: list[int]) -> SamplingPlan:
    """The plan of a request, with the defaults for the kind of editing. Raises ValueError."""
    model = loaded.model
    start = request.start_step or model.T
    sampler, steps, variance = request.sampler, request.steps, request.variance
    if repaints(request):
        sampler = "ddpm"
        steps = steps or min(DEFAULT_STEPS_WITH_MASK, start)
        variance = variance or "small"
    elif request.interpolate:
        sampler = "ddim"
        steps = steps or min(DEFAULT_STEPS_TO_INTERPOLATE, start)
    guidance, guide = request_guidance(request, loaded)
    plan = plan_sampling(
        model,
        sampler=sampler,
        steps=steps,
        evaluations=request.evaluations,
        grid=request.grid,
        variance=variance,
        eta=request.eta,
        guidance=guidance,
        guide=guide,
        guidance_interval=request.guidance_interval,
        start=start,
        keep=saved,
        clip=not request.interpolate,
        precision=request.precision,
    )
    if request.interpolate and plan.steps < 2:
        raise ValueError("--interpolate needs at least 2 steps")
    return plan


def repaints(request: ImageRequest) -> bool:
    """Whether an image is repainted by RePaint, rather than by a model of --condition mask."""
    return bool(request.mask and request.input_image)


def request_guidance(request: ImageRequest, loaded: LoadedModel) -> tuple[float, Guide | None]:
    """The guidance of a request. Edits have none by default."""
    scale, edits = request.guidance, is_edit(request, loaded.model)
    if scale is None and request.guide_with is None and edits:
        scale = 1.0
    labelled = not request.without_class and not (request.label is None and edits)
    scale, guide = choose_guidance(loaded, scale, request.guide_with, labelled, request.sampler)
    if scale != 1 and not guide and not labelled and loaded.model.unet.classes:
        raise ValueError("--guidance needs a class: give another --class than none")
    return scale, guide
