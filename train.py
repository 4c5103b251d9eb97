# PYTHON_ARGCOMPLETE_OK
"""Train a DDPM.

    python train.py --dataset cifar10                                  # paper's settings on a GPU, small ones without
    python train.py --dataset fashionmnist --preset laptop             # two CPU cores, under ten minutes
    python train.py --dataset photos/ --image-size 64 --max-time 8h    # your own images
    python train.py --dataset cifar10 --preset paper --dry-run         # size, speed and time, without training

Everything goes into runs/DATASET. Run again, it goes on where it stopped. Ctrl-C, SIGTERM and SIGUSR1 leave a complete checkpoint.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from runtime import flags
from runtime.arguments import Parser, duration, numbers, real, whole
from runtime.signals import Stop

# Every flag's own default is the paper's (Ho et al. 2020, appendix B, CIFAR-10); a preset is what departs from it.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "laptop": dict(
        width=32,
        mults=(1, 2, 2),
        attention=(8,),
        blocks=1,
        patch=2,
        schedule="cosine",
        parameterization="v",
        variance="small",
        lr=2e-3,
        warmup=200,
        batch_size=32,
        max_steps=3000,
        max_time=600.0,
        val_every=750,
        val_images=500,
        save_every=750,
    ),
    # CIFAR-10 in a GPU-hour. Batch, rate and average are those of Karras et al. 2022 (EDM, table 7), schedule and target those of Salimans
    # & Ho 2022. It has not been measured yet.
    "speedrun": dict(
        schedule="cosine",
        parameterization="v",
        variance="small",
        t_sampling="stratified",
        dropout=0.13,
        augment=0.12,
        batch_size=512,
        lr=1e-3,
        warmup=2000,
        ema_decay=0.9993,
        max_steps=200_000,
        max_time=3600.0,
        val_every=2500,
        val_images=2000,
        save_every=5000,
    ),
}


def build_parser() -> Parser:
    parser = Parser(
        __doc__,
        "\n\n".join(
            [
                "The defaults are those of Ho et al. 2020. Presets depart from them, and a flag that you give departs from its preset.",
                *(
                    f"--preset {name} is {as_typed(preset)}"
                    for name, preset in PRESETS.items()
                    if preset
                ),
            ]
        ),
    )
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "--dataset",
        default="shapes",
        help="mnist, fashionmnist, cifar10, shapes, a folder of images or an .npz file (shapes)",
    )
    flags.add_data_root(group, help="where datasets are kept (data)")
    add("--image-size", type=whole(1), default=32, metavar="N", help="height and width (32)")
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
        help="turn, stretch and shift images with this probability, and tell the network; not in the paper; EDM has 0.12 (0)",
    )
    group = parser.add_argument_group("network")
    add = group.add_argument
    add(
        "--width", type=whole(4), default=128, metavar="N", help="channels of the first level (128)"
    )
    add(
        "--mults",
        type=numbers,
        default=(1, 2, 2, 2),
        metavar="N,..",
        help="width of each level, as multiples (1,2,2,2)",
    )
    add(
        "--attention",
        type=numbers,
        default=(16,),
        metavar="N,..",
        help="resolutions of the feature map with attention (16)",
    )
    add("--blocks", type=whole(1), default=2, metavar="N", help="residual blocks a level (2)")
    add(
        "--dropout",
        type=real(0, 0.999),
        metavar="P",
        help="share of values set to 0 (0.1 for cifar10 with --preset paper, else 0)",
    )
    add(
        "--patch",
        type=whole(1),
        default=1,
        metavar="N",
        help="fold NxN pixels into channels; 2 is 4 times cheaper; not in the paper (1)",
    )
    add(
        "--film",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="time scales, too, and not only shifts; not in the paper (no)",
    )
    group = parser.add_argument_group("diffusion")
    add = group.add_argument
    add("--T", type=whole(1), default=1000, metavar="N", help="steps of the forward process (1000)")
    add(
        "--schedule",
        default="linear",
        metavar="WHAT",
        help="linear, cosine, sigmoid, or a file of T betas, one a line (linear)",
    )
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
        help="x_T is noise alone; for x0 and v; not in the paper (no)",
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
        help="of a reverse step: beta_t, the posterior's, or learned between them (large)",
    )
    add(
        "--weighting",
        choices=("plain", "min-snr", "p2", "edm"),
        default="plain",
        help="of the squared error over t (plain: 1 everywhere)",
    )
    add(
        "--t-sampling",
        choices=("uniform", "stratified", "lognormal"),
        default="uniform",
        help="at which t: uniform, stratified over the batch, or ln sigma normal as in EDM (uniform)",
    )
    add(
        "--class-conditional",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="tell the network the label; not in the paper (no)",
    )
    add(
        "--label-dropout",
        type=real(0, 1),
        default=0.1,
        metavar="P",
        help="share of images whose label is hidden, for guidance (0.1)",
    )
    group = parser.add_argument_group("training")
    add = group.add_argument
    add(
        "--preset",
        choices=("auto", *PRESETS),
        default="auto",
        help="see below; auto: paper on a CUDA GPU, laptop without one (auto)",
    )
    flags.add_batch_size(group, default=128, help="images a step, over all devices (128)")
    add("--lr", type=real(0, 10), default=2e-4, metavar="R", help="learning rate of Adam (2e-4)")
    add(
        "--warmup",
        type=whole(0),
        default=5000,
        metavar="N",
        help="steps in which the rate rises linearly (5000)",
    )
    add(
        "--clip",
        type=real(0, 1e9),
        default=1.0,
        metavar="X",
        help="largest norm of the gradient, 0 for any (1.0)",
    )
    add(
        "--ema-decay",
        type=real(0, 1),
        default=0.9999,
        metavar="D",
        help="of the averaged weights, at most (1+n)/(10+n) (0.9999)",
    )
    add(
        "--posthoc-ema",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep what Inference.py --ema-length needs; not in the paper (no)",
    )
    add(
        "--max-steps",
        type=whole(1),
        default=800_000,
        metavar="N",
        help="stop after so many steps (800000)",
    )
    add(
        "--max-time",
        type=duration,
        metavar="TIME",
        help="stop after 90s, 10m, 8h or HH:MM:SS, resumed parts included (no limit)",
    )
    flags.add_seed(group, help="of initialization, noise, order of the images and dropout (0)")
    flags.add_precision(group)
    flags.add_compile(
        group,
        auto=True,
        help="mode of torch.compile; auto: default on CUDA, else off (auto)",
    )
    add(
        "--accumulate",
        type=whole(1),
        default=1,
        metavar="N",
        help="compute each step in N parts, to save memory (1)",
    )
    add(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep a quarter of the values for the gradient, a fifth slower: for large images (no)",
    )
    flags.add_processes(
        group,
        help="processes a node, each on a device of its own (those of srun or torchrun, else 1)",
    )
    group = parser.add_argument_group("run")
    add = group.add_argument
    add(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="where checkpoints, metrics and samples go (runs/DATASET)",
    )
    add(
        "--resume",
        default="auto",
        metavar="WHAT",
        help="auto: from the run's newest checkpoint; none: start anew; or a file (auto)",
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
        help="test images in a validation (10000)",
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
        "--eval-every",
        type=whole(0),
        default=0,
        metavar="N",
        help="steps between measurements of bits/dim and the classifier's distance (0: none)",
    )
    add(
        "--eval-images",
        type=whole(2),
        default=500,
        metavar="N",
        help="unseen images and samples for --eval-every (500)",
    )
    add("--dry-run", action="store_true", help="print size, speed and time to expect, and stop")
    add("--prepare-data", action="store_true", help="download and decode the dataset, and stop")
    return parser


def as_typed(preset: dict[str, Any]) -> str:
    """The flags that make up a preset."""

    def words(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return " ".join(
        f"--{name.replace('_', '-')} " + (f"{value:g}s" if name == "max_time" else words(value))
        for name, value in preset.items()
    )


def main(argv: list[str] | None = None, stop: Stop | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    unarmed, stop = stop is None, stop or Stop()

    from checkpoints.checkpoint import read_checkpoint
    from runtime import launcher
    from training import fit

    machine = launcher.launch(
        parser.prog, args.device, args.precision, args.devices, args.num_nodes
    )
    processes = machine.processes
    device, precision = machine.device.type, machine.precision
    preset = args.preset if args.preset != "auto" else "paper" if device == "cuda" else "laptop"
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)

    first = machine.is_first
    with contextlib.ExitStack() as held:
        if unarmed:
            stop.arm()
            held.callback(stop.disarm)

        def begin(path: Path | None) -> tuple[Any, Path | None]:
            run = build(args, preset, processes)
            if first and not args.prepare_data and not args.dry_run:
                path = fit.settle(
                    args, run, held, {"preset": preset, "device": device, "precision": precision}
                )
            return (run, path, read_checkpoint(path) if path else None), path

        # the first process downloads the data and finds the checkpoint to resume from
        run, path, resume = machine.prepare(begin)
        if first:
            size = sum(p.numel() for p in run.model.parameters())
            chosen = f" (chosen for {device})" if args.preset == "auto" else ""
            many = f"{processes.world_size} x " if processes.world_size > 1 else ""
            images = f"{len(run.data):,} images {run.data.depth}x{run.data.size}x{run.data.size}, {len(run.unseen):,} unseen"
            print(
                f"{run.data.name} is ready: {images}"
                if args.prepare_data
                else f"{run.data.name}: {images}; network of {size / 1e6:.1f}M parameters; preset {preset}{chosen}; "
                f"{many}{device}, {precision}",
                flush=True,
            )
        status = 0
        if args.prepare_data or args.dry_run:
            status = dry_run(args, run, precision) if args.dry_run and first else 0
        elif resume and (
            resume["global_step"] >= args.max_steps
            or (args.max_time and resume["elapsed"] >= args.max_time)
        ):
            if first:
                print(
                    f"{path} is already trained, {resume['global_step']} steps in {resume['elapsed']:.0f} s; "
                    "a larger --max-steps or --max-time trains it further"
                )
        else:
            if first:
                print(
                    f"to watch it: {run.run_dir / 'samples'}, and tensorboard --logdir {run.run_dir.parent}",
                    flush=True,
                )
            try:
                status = fit.fit(args, run, resume, processes, precision, stop)
            except launcher.Refused as error:
                status = machine.fail(str(error), by_all=error.by_all)
        processes.leave()
        return status


def build(args: argparse.Namespace, preset: str, processes: Any) -> Any:
    """The data, the model and what a resumed run must share with the first. Raises ValueError or OSError, in one line."""
    import torch

    from Dataset import Batches, DiffSet
    from diffusion import schedules
    from diffusion.settings import check_settings
    from DiffusionModel import DiffusionModel

    check_settings({"size": args.image_size})
    data, unseen = (
        DiffSet(train, args.dataset, args.data_root, args.image_size) for train in (True, False)
    )
    if args.dropout is None:
        args.dropout = 0.1 if data.name == "cifar10" and preset == "paper" else 0.0
    settings = {
        name: getattr(args, name)
        for name in (
            "T",
            "schedule",
            "beta_small",
            "beta_large",
            "zero_terminal_snr",
            "parameterization",
            "variance",
            "weighting",
            "t_sampling",
            "label_dropout",
            "augment",
            "lr",
            "warmup",
            "seed",
            "width",
            "mults",
            "attention",
            "blocks",
            "dropout",
            "patch",
            "film",
        )
    }
    settings |= {
        "depth": data.depth,
        "size": data.size,
        "dataset": data.name,
        "class_names": data.classes,
    }
    if args.class_conditional:
        settings["classes"] = len(data.classes)
    if args.schedule not in schedules.SCHEDULES:
        betas = schedules.read_betas(args.schedule)
        settings |= {"schedule": "linear", "betas": betas, "T": len(betas)}
    check_settings(settings)
    flip = data.flip if args.flip is None else args.flip
    judge = real = None
    if (
        args.eval_every
        and processes.global_rank == 0
        and len(data.classes) > 1
        and not (args.dry_run or args.prepare_data)
    ):
        from evaluation import features  # slow to import, and seldom needed

        judge = features.load_feature_extractor(
            "classifier", data, unseen, args.data_root, processes.device
        )
        real = features.reference_features(judge, data, args.data_root)
    if args.accumulate > 1 and args.batch_size % (args.accumulate * processes.world_size):
        raise ValueError(
            f"--batch-size {args.batch_size} does not divide into --accumulate {args.accumulate} parts"
            + (f" on {processes.world_size} processes each" if processes.world_size > 1 else "")
            + ": choose another number"
        )
    if args.accumulate > 1 and args.compile in ("reduce-overhead", "max-autotune"):
        raise ValueError(
            f"--compile {args.compile} takes CUDA graphs, which cannot add up the gradients of --accumulate: "
            "give --compile default"
        )
    served = {
        "device": processes.device,
        "rank": processes.global_rank,
        "world": processes.world_size,
    }
    torch.manual_seed(args.seed)
    return argparse.Namespace(
        data=data,
        unseen=unseen,
        judge=judge,
        real=real,
        settings=settings,
        model=DiffusionModel(**settings),
        batches=Batches(data, args.batch_size, args.seed, flip=flip, **served),
        validation=Batches(unseen, args.batch_size, shuffle=False, limit=args.val_images, **served),
        run_dir=args.run_dir or Path("runs") / data.name,
        course={
            "data": data.digest(),
            "batch_size": args.batch_size,
            "flip": flip,
            "clip": args.clip,
            "ema_decay": args.ema_decay,
            "posthoc_ema": args.posthoc_ema,
        },
    )


def dry_run(args: argparse.Namespace, run: Any, precision: str) -> int:
    """Print parameters, FLOPs, memory, speed and time to expect of training, measured over a few steps in this process."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from runtime import devices
    from training import fit
    from training.batches import micro_batches

    device, max_steps, max_time = run.batches.images.device, args.max_steps, args.max_time
    model, batch = run.model.to(device), next(iter(run.batches))
    optimizer, x = model.configure_optimizers()["optimizer"], batch[0]

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "32-true"):
            loss = torch.zeros((), device=device)
            for micro_batch in micro_batches(*batch, args.accumulate):
                loss = model.get_loss(micro_batch, 0) / args.accumulate
                loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    fit.prepare_step(
        args, model, len(x), "off", precision
    )  # as it is written: what is compiled cannot be counted
    with FlopCounterMode(display=False) as flops:
        step()
    devices.peak_memory(device.type, reset=True)
    fit.prepare_step(args, model, len(x), args.compile, precision)
    step()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < 5:
        step()
        count += 1
    rate = count / (time.monotonic() - started)
    seconds = min(max_steps / rate, max_time or float("inf"))
    print(
        f"parameters   {sum(p.numel() for p in model.parameters()):,}\n"
        f"computation  {flops.get_total_flops() / len(x) / 1e9:.2f} GFLOPs an image, forward and backward\n"
        f"memory       {devices.peak_memory(device.type) / 2**30:.2f} GiB\n"
        f"speed        {rate * len(x):.1f} images/s, {rate:.2f} steps/s at batch {len(x)}\n"
        f"time         {seconds / 3600:.1f} hours for {min(max_steps, int(seconds * rate)):,} steps, without validation and previews"
    )
    return 0


if __name__ == "__main__":
    stop = Stop().arm()  # before torch is imported
    status = main(stop=stop)
    stop.ignore()
    sys.exit(status)
