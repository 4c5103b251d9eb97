# PYTHON_ARGCOMPLETE_OK
"""Sample images from a checkpoint, edit an image, or add noise to one.

    # noise -> images
    python Inference.py --ckpt runs/cifar10 --save-steps 0,50,500,1000
    # Algorithm 2 of the paper, all T steps
    python Inference.py --ckpt runs/cifar10 --sampler ddpm
    # after train.py --class-conditional
    python Inference.py --ckpt runs/mnist --class 7 --guidance 2
    # image -> half noise -> image
    python Inference.py --ckpt runs/cifar10 --input-image a.png --start-step 500
    # repaint where the mask is white
    python Inference.py --ckpt runs/cifar10 --input-image a.png --mask mask.png
    # super-resolution, after train.py --condition downscale:4
    python Inference.py --ckpt runs/cifar10 --condition-image small.png
    # from one image to another
    python Inference.py --ckpt runs/cifar10 --interpolate a.png b.png
    # image -> noise, no checkpoint needed
    python Inference.py --input-image a.png --T 1500 --save-steps 0,500,1500

For every saved step t, writes t0500.png (a grid of x_t) into --out. Also writes trajectory.npz for
make_gif.py and report.py (`frames`, x_t, uint8 (F,N,H,W,C); `times` (F,)). With --ckpt, also writes
x0_t0500.png (the x_0 predicted from x_t), `predicted` in trajectory.npz (this prediction for every
frame), and samples.npz (`arr_0` uint8 (N,H,W,C); with classes also `arr_1`, the labels (N,)).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from runtime import flags
from runtime.arguments import Parser, interval, some_numbers, whole
from runtime.output import protect_output
from runtime.signals import Stop
from sampling.image_request import ImageRequest

FORWARD_PROCESS = ("T", "schedule")  # flags that only apply without --ckpt


def build_parser() -> Parser:
    parser = Parser(__doc__, main_flag="--ckpt")
    group = parser.add_argument_group("what")
    add = group.add_argument
    flags.add_checkpoint(
        group,
        help="a checkpoint, a run directory (its newest one), a pretrained model's name, a "
        "diffusers pipeline or a .safetensors file (none: only add noise to --input-image)",
    )
    flags.add_weights(group)
    add(
        "--num",
        type=whole(1),
        metavar="N",
        help="number of images, of each class if --class selects several (16; 8 of each)",
    )
    flags.add_seed(group, help="image i depends on (seed, i) alone (0)")
    group = parser.add_argument_group("how")
    add = group.add_argument
    add(
        "--sampler",
        choices=flags.SAMPLERS,
        help="ddpm: the paper's; unipc: the best with few steps; see docs/samplers-and-presets.md "
        "(unipc; ddpm for RePaint, ddim with --interpolate)",
    )
    flags.add_sampling_steps(
        group,
        type=whole(1),
        help="number of sampling steps, to which --save-steps are added (20; 10 for heun or "
        "autoguidance; T for ddpm; 50 for --interpolate; 100 for RePaint)",
    )
    flags.add_evaluations(group)
    flags.add_grid(group)
    flags.add_eta(group, help="amount of noise in ddim: 0 for none, 1 for as much as ddpm (0)")
    flags.add_variance(group, help="variance of ddpm (that of the model; small for RePaint)")
    group = parser.add_argument_group("classes and guidance")
    add = group.add_argument
    add(
        "--class",
        dest="label",
        metavar="CLASS",
        help="classes to sample, by number or name, as in 3,7; all; or none (the classes in turn; "
        "none for edits and --condition-image)",
    )
    flags.add_guidance(
        group,
        help="strength of guidance, 1 for none (that of the model; 1 for edits, --condition-image "
        "and ddpm)",
    )
    flags.add_guide(group)
    add(
        "--guidance-interval",
        type=interval,
        metavar="LO,HI",
        help="range of t in which guidance applies (all; t >= T/5 with autoguidance)",
    )
    group = parser.add_argument_group("editing")
    add = group.add_argument
    add(
        "--input-image",
        type=Path,
        metavar="FILE",
        help="image to edit, or to add noise to without --ckpt (none)",
    )
    add(
        "--start-step",
        type=whole(1),
        metavar="T",
        help="add noise to --input-image up to this t, then denoise: SDEdit (none)",
    )
    add(
        "--mask",
        type=Path,
        metavar="FILE",
        help="repaint --input-image (RePaint) or --condition-image where this image is white "
        "(none)",
    )
    add(
        "--interpolate",
        type=Path,
        nargs=2,
        metavar="FILE",
        help="interpolate between two images in the space of DDIM latents (none)",
    )
    add(
        "--condition-image",
        type=Path,
        metavar="FILE",
        help="image to condition on, after train.py --condition (an unseen image of the run)",
    )
    group = parser.add_argument_group("without --ckpt")
    flags.add_forward_process(group)
    parser.set_defaults(**dict.fromkeys(FORWARD_PROCESS))
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--out",
        type=Path,
        default=Path("samples"),
        metavar="DIR",
        help="output folder (samples)",
    )
    add(
        "--save-steps",
        type=some_numbers(0),
        metavar="T,..",
        help="values of t at which to save pictures; 0 is the finished image (0, T/20, T/2, T)",
    )
    add(
        "--frames",
        type=whole(0),
        default=50,
        metavar="N",
        help="maximum number of frames in trajectory.npz besides the saved steps (50)",
    )
    add(
        "--preview",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show some images in a terminal with colours (yes)",
    )
    group = parser.add_argument_group("machine")
    flags.add_batch_size(
        group,
        default=64,
        help="images sampled at once; on a CPU it does not affect the images (64)",
    )
    flags.add_precision(group)
    flags.add_compile(
        group,
        help="mode of torch.compile; takes a minute or more; for many images on a GPU (off)",
    )
    flags.add_processes(
        group,
        help="processes on each node; on a CPU, the images stay the same (those of srun or "
        "torchrun, else 1)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before importing torch, so that typos fail at once
    if wrong := find_conflict(args):
        parser.error(wrong)

    from runtime import launcher, terminal
    from sampling.generate import NoisingJob, generate_images
    from sampling.output_files import summary, write_images
    from sampling.prepare import prepare_to_write

    # interpolation also encodes images into latents, which needs float32
    precision = "32" if args.interpolate else args.precision
    machine = launcher.launch(parser.prog, args.device, precision, args.devices, args.num_nodes)
    request = image_request(args, machine.precision)
    job = machine.prepare(lambda: prepare_to_write(request, machine.device, machine.is_first))
    try:
        with launcher.memory_errors():
            images = generate_images(job, machine.processes, args.compile)
        if images is None:
            return 0
        if isinstance(job, NoisingJob) and job.saved_only:
            print("the image is large: the trajectory has the saved steps only")
        write_images(args.out, job, images)
    except launcher.OUT_OF_MEMORY:
        return machine.fail(f"out of memory: choose a smaller --batch-size than {args.batch_size}")
    except OSError as error:
        parser.error(f"cannot write to {args.out} ({error.strerror}): choose another --out")
    if args.preview:
        terminal.show(images.images)
    print(summary(args.out, job, images))
    return 0


def image_request(args: argparse.Namespace, precision: str) -> ImageRequest:
    """Make the request from the flags, with the precision of this machine."""
    forward_process = {name: getattr(args, name) for name in FORWARD_PROCESS}
    return ImageRequest(
        **{name: value for name, value in forward_process.items() if value is not None},
        checkpoint=args.ckpt,
        ema=args.weights == "ema",
        ema_length=args.ema_length,
        num=args.num,
        seed=args.seed,
        sampler=args.sampler,
        steps=args.steps,
        evaluations=args.evaluations,
        grid=args.grid or "uniform",
        eta=args.eta or 0.0,
        variance=args.variance,
        label=args.label,
        guidance=args.guidance,
        guide_with=args.guide_with,
        guidance_interval=args.guidance_interval,
        input_image=args.input_image,
        start_step=args.start_step,
        mask=args.mask,
        interpolate=tuple(args.interpolate) if args.interpolate else None,
        condition_image=args.condition_image,
        out=args.out,
        save_steps=args.save_steps,
        frames=args.frames,
        batch_size=args.batch_size,
        precision=precision,
    )


# ---- flags that do not go together ---------------------------------------------------------------


def find_conflict(args: argparse.Namespace) -> str:
    """Return what is wrong with the flags, in one line, or an empty string."""
    return (
        missing_checkpoint(args)
        or conflicting_weights(args)
        or conflicting_edits(args)
        or conflicting_sampler(args)
        or conflicting_interpolation(args)
        or conflicting_guidance(args)
    )


def edits(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that edit an image, with their values."""
    return {
        "--start-step": args.start_step,
        "--mask": args.mask,
        "--interpolate": args.interpolate,
    }


def missing_checkpoint(args: argparse.Namespace) -> str:
    """Report that neither a model nor an image is given, or a flag that needs a model."""
    if args.ckpt is not None:
        return forward_process_of_the_model(args)
    if args.input_image is None:
        return (
            "give --ckpt (a checkpoint or a run directory) to sample, "
            "or --input-image to noise an image"
        )
    need_a_model = {
        **edits(args),
        "--condition-image": args.condition_image,
        "--class": args.label,
        "--sampler": args.sampler,
        "--steps": args.steps,
        "--evaluations": args.evaluations,
        "--grid": args.grid,
        "--num": args.num,
        "--ema-length": args.ema_length,
        "--compile": args.compile != "off",
        "--guidance": args.guidance is not None,
        "--guide-with": args.guide_with,
        "--guidance-interval": args.guidance_interval,
    }
    for flag, value in need_a_model.items():
        if value:
            return f"{flag} needs a model: add --ckpt"
    return ""


def forward_process_of_the_model(args: argparse.Namespace) -> str:
    """Report a flag that the model in --ckpt already determines."""
    for name in FORWARD_PROCESS:
        if getattr(args, name) is not None:
            return f"with --ckpt, {flags.flag_of(name)} is that of the model: leave it out"
    return ""


def conflicting_weights(args: argparse.Namespace) -> str:
    """Report a conflict between the flags of the averaged weights."""
    if args.ema_length is not None and args.weights == "raw":
        return "--ema-length averages the weights: leave out --weights raw"
    return ""


def conflicting_edits(args: argparse.Namespace) -> str:
    """Report two edits at once, or an edit without its image."""
    given = [flag for flag, value in edits(args).items() if value]
    if len(given) > 1:
        return f"{' and '.join(given)} are different ways to edit: choose one"
    if args.ckpt is None:
        return ""
    if args.condition_image:
        return conflicting_condition(args)
    takes_input_image = args.start_step is not None or args.mask is not None
    if args.input_image and not takes_input_image:
        return (
            "--input-image goes with --start-step (noise the image to that step, then denoise it) "
            "or --mask (repaint part of it)"
        )
    if takes_input_image and args.input_image is None:
        other = " or --condition-image" if args.mask else ""
        return f"{given[0]} needs the image: add --input-image{other}"
    return ""


def conflicting_condition(args: argparse.Namespace) -> str:
    """Report a flag that does not go with --condition-image."""
    others = {
        "--input-image": args.input_image,
        "--start-step": args.start_step,
        "--interpolate": args.interpolate,
    }
    for flag, value in others.items():
        if value:
            return f"{flag} and --condition-image cannot be combined: leave one of them out"
    return ""


def conflicting_sampler(args: argparse.Namespace) -> str:
    """Report a flag of a sampler that is not used."""
    edit, sampler = "", args.sampler
    if args.mask and not args.condition_image:
        edit, sampler = "--mask", "ddpm"
    elif args.interpolate:
        edit, sampler = "--interpolate", "ddim"
    if args.sampler not in (None, sampler):
        return f"{edit} works with --sampler {sampler} alone"
    if args.evaluations and (args.steps or edit):
        return f"--evaluations does not go with {edit or '--steps'}: leave one of them out"
    if args.eta is not None and sampler != "ddim":
        return "--eta is the noise of ddim: add --sampler ddim"
    if args.eta and args.interpolate:
        return "--interpolate needs ddim without noise: leave out --eta"
    if args.variance and sampler != "ddpm":
        return "--variance is a setting of ddpm: add --sampler ddpm"
    return ""


def conflicting_interpolation(args: argparse.Namespace) -> str:
    """Report a flag that does not go with --interpolate."""
    if args.interpolate and args.precision in ("tf32", "bf16"):
        return (
            "--interpolate goes from the images to their latents and back, which needs float32: "
            f"leave out --precision {args.precision}"
        )
    if args.interpolate and (args.label or "").lower() == "all":
        return "--interpolate takes one class or none: leave out --class all"
    return ""


def conflicting_guidance(args: argparse.Namespace) -> str:
    """Report guidance without an effect, or without a class."""
    if args.guidance == 1 and (args.guidance_interval or args.guide_with):
        return "--guidance 1 is no guidance: choose another strength, or leave the other flags out"
    is_edit = args.input_image or args.interpolate
    if is_edit and args.label is None and args.guide_with == "labels":
        return "--guide-with labels needs a class: add --class"
    return ""


if __name__ == "__main__":
    protect_output()
    # a signal ends the program at once, without half-written files; a rerun writes the same bytes
    Stop().arm()
    sys.exit(main())
