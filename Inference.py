# PYTHON_ARGCOMPLETE_OK
"""Sample images from a checkpoint, step by step; edit an image; or noise one.

    python Inference.py --ckpt runs/cifar10 --save-steps 0,50,500,1000         # noise -> images
    python Inference.py --ckpt runs/cifar10 --sampler ddpm                     # Algorithm 2 of the paper, all T steps
    python Inference.py --ckpt runs/mnist --class 7 --guidance 2               # after train.py --class-conditional
    python Inference.py --ckpt runs/cifar10 --input-image a.png --start-step 500   # image -> half noise -> image
    python Inference.py --ckpt runs/cifar10 --input-image a.png --mask mask.png    # paint anew where the mask is white
    python Inference.py --ckpt runs/cifar10 --interpolate a.png b.png          # from one image to another
    python Inference.py --input-image a.png --save-steps 0,50,500,1000         # image -> noise, no checkpoint needed

Writes into --out, for every saved step t: t0500.png (a grid of x_t) and x0_t0500.png (of the prediction of x_0 made from
it); trajectory.npz (`frames` uint8 (F,N,H,W,C), x_t; `predicted`, x_0 as predicted from each, the same shape; `times` (F,)) for
make_gif.py and report.py; samples.npz (`arr_0` uint8 (N,H,W,C), and with --class `arr_1`, the labels (N,)).
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from runtime import flags
from runtime.arguments import Parser, interval, whole
from runtime.signals import Stop


def steps(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(
            f"expected steps separated by commas, as in 0,50,500,1000, not {text!r}"
        )
    return [int(part) for part in text.split(",")]


def build_parser() -> Parser:
    parser = Parser(__doc__)
    group = parser.add_argument_group("what")
    add = group.add_argument
    flags.add_checkpoint(
        group,
        help="a checkpoint, a run directory for its newest, a pipeline of diffusers, "
        "a .safetensors file (none: noise --input-image)",
    )
    flags.add_weights(group)
    add(
        "--num",
        type=whole(1),
        metavar="N",
        help="number of images (16; with --class all: of each class, 8)",
    )
    flags.add_seed(group, help="image i depends on (seed, i) alone (0)")
    group = parser.add_argument_group("how")
    add = group.add_argument
    add(
        "--sampler",
        choices=flags.SAMPLERS,
        help="ddpm is the paper's; unipc came nearest to the data in 20 evaluations: see the "
        "README (unipc; ddpm with --mask, ddim to --interpolate)",
    )
    flags.add_sampling_steps(
        group,
        type=whole(1),
        help="steps to t = 0, besides those of --save-steps (20; heun, twice as dear, 10; "
        "ddpm all T; --interpolate 50; --mask 100)",
    )
    flags.add_grid(group)
    flags.add_eta(group, help="noise of ddim: 0 none, 1 as much as ddpm's small variance (0)")
    flags.add_variance(group, help="of ddpm (that of the model; with --mask small)")
    group = parser.add_argument_group("conditioning, of a model trained with --class-conditional")
    add = group.add_argument
    add(
        "--class",
        dest="label",
        metavar="CLASS",
        help="number or name; all: a row of each (none: images of any class)",
    )
    flags.add_guidance(group, help="how strongly the class is asked for; 1 is the model's (1)")
    add(
        "--guidance-interval",
        type=interval,
        metavar="LO,HI",
        help="the t at which guidance applies (all)",
    )
    group = parser.add_argument_group("editing")
    add = group.add_argument
    add(
        "--input-image",
        type=Path,
        metavar="FILE",
        help="noise this image, or with --ckpt edit it (none: begin with noise)",
    )
    add(
        "--start-step",
        type=whole(1),
        metavar="T",
        help="noise --input-image to this t and denoise it: SDEdit (none)",
    )
    add(
        "--mask",
        type=Path,
        metavar="FILE",
        help="paint --input-image anew where this image is white: RePaint (none)",
    )
    add(
        "--interpolate",
        type=Path,
        nargs=2,
        metavar="FILE",
        help="the way from one image to another, through their DDIM latents (none)",
    )
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--out",
        type=Path,
        default=Path("samples"),
        metavar="DIR",
        help="folder for what is written (samples)",
    )
    add(
        "--save-steps",
        type=steps,
        metavar="T,..",
        help="the t at which pictures are saved; 0 is the image (0, T/20, T/2, T)",
    )
    add(
        "--frames",
        type=whole(0),
        default=50,
        metavar="N",
        help="most frames of the trajectory besides the saved steps (50)",
    )
    add(
        "--preview",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show some images, in a terminal that has colours (yes)",
    )
    group = parser.add_argument_group("machine")
    flags.add_batch_size(group, default=64, help="images at once; changes no image (64)")
    flags.add_precision(group)
    flags.add_compile(
        group,
        help="mode of torch.compile: a minute or more, once, for many images on a GPU (off)",
    )
    flags.add_processes(
        group,
        help="processes a node; changes no image (those of srun or torchrun, else 1)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    if wrong := contradiction(args):
        parser.error(wrong)

    import numpy as np
    import torch

    from image_data.grids import write_grid
    from image_data.npz_files import write_npz
    from runtime import devices, launcher, terminal
    from sampling import generate

    # interpolation also walks from images to noise, which takes float32
    precision = "32" if args.interpolate else args.precision
    machine = launcher.launch(parser.prog, args.device, precision, args.devices, args.num_nodes)
    processes = machine.processes

    def prepare(_: None) -> tuple[Any, None]:
        try:
            prepared = generate.plan(args, processes.device)
            if processes.is_first:  # fail now, not after the sampling
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / ".writable").touch()
                (args.out / ".writable").unlink()
        except OSError as error:
            if not error.filename:
                raise
            message = f"{error.filename}: {error.strerror}; choose a place that can be used"
            raise ValueError(message) from None
        return prepared, None

    prepared = machine.prepare(prepare)
    model, image, saved, frames, total = (
        prepared.model,
        prepared.image,
        prepared.saved,
        prepared.frames,
        prepared.total,
    )
    rank, world = processes.global_rank, processes.world_size
    share = range(total * rank // world, total * (rank + 1) // world)
    try:
        if args.ckpt and len(share):
            devices.compile_network(
                model,
                args.compile,
                min(args.batch_size, len(share)) * (1 if args.guidance == 1 else 2),
                machine.precision,
                processes.print,
            )
        with torch.autocast(
            processes.device.type, torch.bfloat16, enabled=machine.precision != "32-true"
        ):
            parts = (
                processes.gather(generate.reverse(prepared, share, args.seed, args.batch_size))
                if args.ckpt
                else []
            )
        processes.leave()
        if not machine.is_first:
            return 0
        if args.ckpt:
            kept, predicted, x_0 = generate.joined(parts, prepared.order)
            write_npz(
                args.out / "samples.npz",
                arr_0=x_0,
                **({"arr_1": prepared.labels} if prepared.labels else {}),
            )
        else:
            assert image is not None
            kept, predicted = (
                generate.forward(
                    model,
                    image,
                    frames if image.numel() <= 3 * 512**2 else sorted(saved),
                    args.seed,
                ),
                {},
            )
            x_0 = np.concatenate([kept[t] for t in sorted(saved)])
            print(
                "the image is large: the trajectory has the saved steps only"
                if len(kept) < len(frames)
                else "",
                end="",
            )
        times = sorted(kept, reverse=True)
        write_npz(
            args.out / "trajectory.npz",
            frames=[kept[t] for t in times],
            times=times,
            **(
                {"predicted": [predicted[t] for t in times]} if predicted else {}
            ),  # at t = 0 the image itself
            **({"columns": prepared.columns} if prepared.columns else {}),
        )
        for t in saved:
            write_grid(args.out / f"t{t:04d}.png", kept[t], prepared.columns)
            if t in predicted:
                write_grid(args.out / f"x0_t{t:04d}.png", predicted[t], prepared.columns)
        written = {
            f"{kind}{t:04d}" for t in saved for kind in ("t", *(["x0_t"] if t in predicted else []))
        }
        for old in args.out.glob(
            "*.png"
        ):  # of an earlier run: its pictures are not to stand beside these
            if re.fullmatch(r"(x0_)?t\d{4,6}", old.stem) and old.stem not in written:
                old.unlink()
    except launcher.OUT_OF_MEMORY:
        return machine.fail(f"out of memory: choose a smaller --batch-size than {args.batch_size}")
    except OSError as error:
        parser.error(f"cannot write to {args.out} ({error.strerror}): choose another --out")
    if args.preview:
        terminal.show(x_0)
    print(
        f"{args.out}: {', '.join(f't{t:04d}.png' for t in sorted(saved))}, trajectory.npz ({len(times)} frames)"
        + (f", samples.npz ({total} images)" if args.ckpt else "")
        + (
            f"; grids and trajectory show the first {prepared.shown}"
            if args.ckpt and total > prepared.shown
            else ""
        )
    )
    return 0


def contradiction(args: argparse.Namespace) -> str:
    """What is wrong with flags that do not go together, in one line, or nothing."""
    ways = {"--start-step": args.start_step, "--mask": args.mask, "--interpolate": args.interpolate}
    editing = [flag for flag, value in ways.items() if value]
    if args.ckpt is None:
        if args.input_image is None:
            return "give --ckpt (a checkpoint or a run directory) to sample, or --input-image to noise an image"
        others = {
            "--class": args.label,
            "--sampler": args.sampler,
            "--steps": args.steps,
            "--grid": args.grid,
            "--num": args.num,
            "--ema-length": args.ema_length,
            "--compile": args.compile != "off",
        }
        for flag, value in (ways | others).items():
            if value:
                return f"{flag} needs a model: add --ckpt"
    if args.ema_length is not None and args.weights == "raw":
        return "--ema-length averages the weights: leave out --weights raw"
    if len(editing) > 1:
        return f"{' and '.join(editing)} are different ways to edit: choose one"
    if args.ckpt is not None and (args.input_image is None) != (
        not editing or args.interpolate is not None
    ):
        return (
            "--input-image goes with --start-step (noise the image to that step, then denoise it) or --mask (paint it anew in part)"
            if args.input_image
            else f"{editing[0]} needs the image: add --input-image"
        )
    only = "ddpm" if args.mask else "ddim" if args.interpolate else args.sampler
    if args.sampler not in (None, only):
        return f"{editing[0]} works with --sampler {only} alone"
    if args.eta is not None and only != "ddim":
        return "--eta is the noise of ddim: add --sampler ddim"
    if args.eta and args.interpolate:
        return "--interpolate needs the ddim without noise: leave out --eta"
    if args.variance and only != "ddpm":
        return "--variance is that of ddpm: add --sampler ddpm"
    if args.interpolate and args.precision == "bf16":
        return "--interpolate goes from the images to their latents and back, which takes float32: leave out --precision bf16"
    if args.interpolate and (args.label or "").lower() == "all":
        return "--interpolate asks for one class or none: leave out --class all"
    if args.guidance_interval and args.guidance == 1:
        return "--guidance-interval needs a strength: add --guidance"
    if args.label is None and (args.guidance != 1 or args.guidance_interval):
        return "--guidance needs a class: add --class"
    return ""


if __name__ == "__main__":
    Stop().arm()  # a signal ends it at once and leaves no half-written file; run again, it writes the same bytes
    sys.exit(main())
