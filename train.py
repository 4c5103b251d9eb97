# PYTHON_ARGCOMPLETE_OK
"""Train a DDPM.

    # the paper's settings on a GPU, a small model on a CPU
    python train.py --dataset cifar10

    # two CPU cores, at most ten minutes
    python train.py --dataset fashionmnist --preset laptop

    # your own images
    python train.py --dataset photos/ --image-size 64 --max-time 8h

    # size, speed and time, without training
    python train.py --dataset cifar10 --preset paper --dry-run

Everything is written to runs/DATASET. Run the same command again to resume. Ctrl-C, SIGTERM and
SIGUSR1 save a checkpoint and stop.
"""

import argparse
import contextlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from runtime import flags
from runtime.arguments import (
    Parser,
    duration,
    image_size,
    invalid_choice,
    names,
    numbers,
    real,
    two_numbers,
    whole,
)
from runtime.output import protect_output
from runtime.pretrained import model_path
from runtime.signals import Stop
from training.presets import CIFAR10_GUIDANCE, LAPTOP, PRESETS, QUICK, choose_preset

LOGGERS = ("csv", "tensorboard", "wandb", "trackio")
OPTIONAL = ("wandb", "trackio")  # packages that are not in requirements.txt
CONDITIONS = ("downscale:N", "gray", "mask", "edges", "pairs")
# Settings that --condition leaves out of a preset.
WITHOUT_CONDITION = ("class_conditional", "guidance")


def build_parser() -> Parser:
    presets = (
        f"--preset laptop is {preset_flags(LAPTOP)}; but --guidance {CIFAR10_GUIDANCE} for cifar10",
        f"--preset quick is --preset laptop with {preset_flags(QUICK)}",
        f"--preset speedrun is {preset_flags(PRESETS['speedrun'])}",
    )
    introduction = (
        "The defaults are those of Ho et al. 2020. A preset changes some of them, and a flag that "
        "you give overrides the preset."
    )
    parser = Parser(__doc__, "\n\n".join([introduction, *presets]), main_flag="--dataset")
    add_data_flags(parser.add_argument_group("data"))
    add_network_flags(parser.add_argument_group("network"))
    add_diffusion_flags(parser.add_argument_group("diffusion"))
    add_training_flags(parser.add_argument_group("training"))
    add_run_flags(parser.add_argument_group("run"))
    return parser


def add_data_flags(group: flags.Group) -> None:
    add = group.add_argument
    add(
        "--dataset",
        default="shapes",
        help="mnist, fashionmnist, cifar10, shapes, a folder of images or an .npz file (shapes)",
    )
    flags.add_data_root(group, help="folder of datasets (data)")
    add(
        "--image-size",
        type=image_size,
        metavar="HxW",
        help="height x width, as in 48x64; one number is a square (32; that of the .npz if it is "
        "not square)",
    )
    add(
        "--value-range",
        type=two_numbers,
        metavar="LO,HI",
        help="values of black and white in images of more than 8 bits (found from the values of "
        "all images)",
    )
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror images at random (as suits the dataset: no for digits and garments)",
    )
    add(
        "--augment",
        type=real(0, 1),
        default=0.0,
        metavar="P",
        help="probability of geometric augmentation, on which the network is conditioned; EDM uses "
        "0.12; not in the paper (0)",
    )


def add_network_flags(group: flags.Group) -> None:
    add = group.add_argument
    add(
        "--width",
        type=whole(4),
        default=128,
        metavar="N",
        help="base number of channels, which --mults multiplies (128)",
    )
    add(
        "--mults",
        type=numbers,
        default=(1, 2, 2, 2),
        metavar="N,..",
        help="channels of each level as multiples of --width (1,2,2,2)",
    )
    add(
        "--attention",
        type=numbers,
        default=(16,),
        metavar="N,..",
        help="levels with attention, each named by the smaller side of its feature map (16)",
    )
    add("--blocks", type=whole(1), default=2, metavar="N", help="residual blocks in each level (2)")
    add(
        "--dropout",
        type=real(0, 0.999),
        metavar="P",
        help="dropout probability (0.1 for cifar10 with --preset paper, else 0)",
    )
    add(
        "--patch",
        type=whole(1),
        default=1,
        metavar="N",
        help="fold NxN pixels into channels: 2 makes a step about 4 times cheaper; not in the "
        "paper (1)",
    )
    add(
        "--film",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let the time embedding also scale, not only shift, the features; not in the paper "
        "(no)",
    )


def add_diffusion_flags(group: flags.Group) -> None:
    add = group.add_argument
    flags.add_forward_process(group)
    add(
        "--beta-small",
        type=real(0, 1),
        default=1e-4,
        metavar="B",
        help="beta at t = 1, of the linear schedule (1e-4)",
    )
    add(
        "--beta-large",
        type=real(0, 1),
        default=0.02,
        metavar="B",
        help="beta at t = T, of the linear schedule (0.02)",
    )
    add(
        "--zero-terminal-snr",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="make x_T pure noise; needs x0 or v; not in the paper (no)",
    )
    add(
        "--parameterization",
        choices=("eps", "x0", "v"),
        default="eps",
        help="what the network predicts (eps)",
    )
    flags.add_variance(
        group,
        default="large",
        help="variance of the reverse step: large is beta_t, small that of the posterior, learned "
        "lies between (large)",
    )
    add(
        "--weighting",
        choices=("plain", "min-snr", "min-snr+1", "p2", "edm"),
        default="plain",
        help="weight of the loss over t (plain, which is 1 everywhere)",
    )
    add(
        "--t-sampling",
        choices=("uniform", "stratified", "lognormal"),
        default="uniform",
        help="how to draw t: uniform, stratified over the batch, or with ln sigma normal as in "
        "EDM (uniform)",
    )
    add(
        "--class-conditional",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="condition the network on the label; not in the paper (no)",
    )
    add(
        "--clusters",
        type=whole(0),
        default=0,
        metavar="K",
        help="condition the network on K clusters of similar images, instead of labels (0)",
    )
    add(
        "--guidance",
        type=real(0, 1000),
        default=1.0,
        metavar="W",
        help="default strength of guidance for samples of this model; not in the paper (1, none)",
    )
    add(
        "--condition",
        type=condition,
        default="",
        metavar="WHAT",
        help="condition the network on an image: downscale:N, gray, mask, edges or pairs; see "
        "docs/condition-on-images.md; not in the paper (none)",
    )
    add(
        "--label-dropout",
        type=real(0, 1),
        default=0.1,
        metavar="P",
        help="share of labels hidden in training; classifier-free guidance needs some (0.1)",
    )


def add_training_flags(group: flags.Group) -> None:
    add = group.add_argument
    add(
        "--preset",
        choices=("auto", *PRESETS),
        default="auto",
        help="group of settings, see below; auto: paper on a CUDA GPU, else laptop (auto)",
    )
    flags.add_batch_size(group, default=128, help="images in a step, over all devices (128)")
    add(
        "--optimizer",
        choices=("adam", "muon"),
        default="adam",
        help="adam, as in the paper; muon: Muon for the hidden weights, Adam for the rest (adam)",
    )
    add("--lr", type=real(0, 10), default=2e-4, metavar="R", help="learning rate of Adam (2e-4)")
    add(
        "--muon-lr",
        type=real(0, 10),
        default=0.02,
        metavar="R",
        help="learning rate of Muon (0.02)",
    )
    add(
        "--warmup",
        type=whole(0),
        default=5000,
        metavar="N",
        help="steps over which the learning rates rise linearly (5000)",
    )
    add(
        "--lr-schedule",
        choices=("constant", "linear", "cosine"),
        default="constant",
        help="constant, as in the paper; linear, cosine: falls to 0 at --max-steps (constant)",
    )
    add(
        "--cooldown",
        type=real(0, 1),
        default=1.0,
        metavar="X",
        help="share of the steps, at the end, over which the learning rates fall (1)",
    )
    add(
        "--clip",
        type=real(0, 1e9),
        default=1.0,
        metavar="X",
        help="maximum norm of the gradient, 0: no limit (1)",
    )
    add(
        "--ema-decay",
        type=real(0, 1),
        default=0.9999,
        metavar="D",
        help="decay of the averaged weights; (1+n)/(10+n) at step n if that is less (0.9999)",
    )
    add(
        "--posthoc-ema",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep averages for Inference.py --ema-length; not in the paper (no)",
    )
    add(
        "--max-steps",
        type=whole(1),
        default=800_000,
        metavar="N",
        help="number of training steps (800000)",
    )
    add(
        "--max-time",
        type=duration,
        metavar="TIME",
        help="stop after this time, as 90s, 10m, 8h or HH:MM:SS, summed over resumes (no limit)",
    )
    flags.add_seed(group, help="seed of weights, noise, order of the images and dropout (0)")
    flags.add_precision(group)
    flags.add_compile(
        group,
        auto=True,
        help="mode of torch.compile; auto: the mode 'default' on CUDA, else off (auto)",
    )
    add(
        "--accumulate",
        type=whole(1),
        default=1,
        metavar="N",
        help="split a batch into N parts to save memory (1)",
    )
    add(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep a quarter of the activations; a fifth slower; for large images (no)",
    )
    flags.add_processes(
        group,
        help="processes on each node, one for each device (those of srun or torchrun, else 1)",
    )


def add_run_flags(group: flags.Group) -> None:
    add = group.add_argument
    add(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, metrics and samples (runs/DATASET)",
    )
    add(
        "--resume",
        default="auto",
        metavar="WHAT",
        help="auto: the newest checkpoint of the run; none: start again; or a checkpoint (auto)",
    )
    add(
        "--init-from",
        type=model_path,
        metavar="WHAT",
        help="start with weights, network and objective of a model, given by path or pretrained "
        "name (none)",
    )
    add(
        "--val-every",
        type=whole(1),
        default=5000,
        metavar="N",
        help="steps between validations and previews (5000)",
    )
    add(
        "--val-images",
        type=whole(1),
        default=10_000,
        metavar="N",
        help="number of test images in a validation (10000)",
    )
    add(
        "--save-every",
        type=whole(1),
        default=5000,
        metavar="N",
        help="steps between checkpoints (5000)",
    )
    add(
        "--log-every",
        type=whole(1),
        default=50,
        metavar="N",
        help="steps between logged losses (50)",
    )
    add(
        "--logger",
        type=loggers,
        default=("csv", "tensorboard"),
        metavar="NAME,..",
        help="any of csv, tensorboard, wandb, trackio; csv is always written (csv,tensorboard)",
    )
    add(
        "--eval-every",
        type=whole(0),
        default=0,
        metavar="N",
        help="steps between measurements of bits/dim and Frechet distance in classifier "
        "features (0, never)",
    )
    add(
        "--eval-images",
        type=whole(2),
        default=500,
        metavar="N",
        help="number of test images and of samples for --eval-every (500)",
    )
    add("--dry-run", action="store_true", help="print size, speed and expected time, and exit")
    add("--prepare-data", action="store_true", help="download and decode the dataset, and exit")


def loggers(text: str) -> tuple[str, ...]:
    """Parse names of `LOGGERS` separated by commas; their packages must be installed."""
    chosen = tuple(names(*LOGGERS)(text))
    for package in OPTIONAL:
        if package in chosen and not importlib.util.find_spec(package):
            raise argparse.ArgumentTypeError(
                f"{package} is not installed: pip install {package}, or leave it out"
            )
    return chosen


def condition(text: str) -> str:
    """Parse one of `CONDITIONS`, with a number for N; "" or "none" for none."""
    if text in ("", "none"):
        return ""
    if text in CONDITIONS[1:] or re.fullmatch(r"downscale:\d+", text):
        return text
    raise argparse.ArgumentTypeError(invalid_choice(text, CONDITIONS))


def preset_flags(preset: dict[str, Any]) -> str:
    """Return the flags that make up a preset."""
    words = []
    for name, value in preset.items():
        flag, text = f"--{name.replace('_', '-')}", str(value)
        if value is True:
            words.append(flag)
            continue
        if name == "max_time":
            text = f"{value:g}s"
        elif isinstance(value, tuple):
            text = ",".join(map(str, value))
        words.append(f"{flag} {text}")
    return " ".join(words)


def main(argv: list[str] | None = None, stop: Stop | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before importing torch, so that typos fail at once
    argv = sys.argv[1:] if argv is None else argv

    from runtime.launcher import launch
    from training.initial_weights import trained_settings
    from training.settings import Invocation, TrainingSettings
    from training.start import estimate, prepare_data, train

    machine = launch(parser.prog, args.device, args.precision, args.devices, args.num_nodes)
    preset = choose_preset(args.preset, machine.device.type)
    of_weights = {}
    if args.init_from:
        of_weights = machine.prepare(lambda: trained_settings(args.init_from, args.schedule))
    args = parse_with_preset(argv, preset, of_weights)
    settings = TrainingSettings.from_flags(vars(args), preset)
    invocation = Invocation(sys.argv, vars(args))
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = Stop().arm()
            stack.callback(stop.disarm)
        if args.prepare_data:
            status = prepare_data(settings, machine)
        elif args.dry_run:
            status = estimate(settings, invocation, machine)
        else:
            status = train(settings, invocation, machine, stop, stack)
        machine.processes.leave()
        return status


def parse_with_preset(
    argv: list[str], preset: str, of_weights: dict[str, Any] | None = None
) -> argparse.Namespace:
    """Parse the flags. Their defaults are the settings of the preset, overridden by `of_weights`,
    the settings that --init-from takes from the weights."""
    parser = build_parser()
    args = parser.parse_args(argv)
    values = PRESETS[preset]
    if args.condition:
        values = {name: value for name, value in values.items() if name not in WITHOUT_CONDITION}
    parser.set_defaults(**(values | (of_weights or {})))
    args = parser.parse_args(argv)
    of_cifar10 = Path(args.dataset).stem.lower() == "cifar10" and args.class_conditional
    if preset == "laptop" and of_cifar10 and not args.condition and not args.clusters:
        parser.set_defaults(guidance=CIFAR10_GUIDANCE)
        args = parser.parse_args(argv)
    return args


if __name__ == "__main__":
    protect_output()
    stop = Stop().arm()  # before torch is imported
    status = main(stop=stop)
    stop.ignore()
    sys.exit(status)
