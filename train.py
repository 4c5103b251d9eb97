"""Train a DDPM.

    python train.py --dataset cifar10                                  # paper's settings on a GPU, small ones without
    python train.py --dataset fashionmnist --preset laptop             # two CPU cores, under ten minutes
    python train.py --dataset photos/ --image-size 64 --max-time 8h    # your own images
    python train.py --dataset cifar10 --preset paper --dry-run         # size, speed and time, without training

Run again, it goes on where it stopped. Ctrl-C, SIGTERM and SIGUSR1 leave a complete checkpoint.
"""

import argparse
import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Every flag's own default is the paper's (Ho et al. 2020, appendix B, CIFAR-10); a preset is what departs from it.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "laptop": dict(width=32, mults=(1, 2, 2), attention=(8,), blocks=1, patch=2, parameterization="v", lr=2e-3, warmup=200,
                   variance="small", batch_size=32, max_steps=2000, max_time=600.0, val_every=500, val_images=500, save_every=500),
}


def whole(low: int) -> Any:
    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, not {text!r}")
        return int(text)
    return number


def real(low: float, high: float) -> Any:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, not {text!r}")
        return value
    return number


def numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, as in 1,2,2, not {text!r}")
    return tuple(int(part) for part in text.split(",") if part)


def duration(text: str) -> float:
    """Seconds of 90s, 10m, 8h or HH:MM:SS."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text):
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d)", text):
        return int(match[1]) * 3600.0 + int(match[2]) * 60 + int(match[3])
    raise argparse.ArgumentTypeError(f"expected a time like 90s, 10m, 8h or 01:30:00, not {text!r}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Defaults are those of Ho et al. 2020. --preset laptop departs from them:\n  "
               + ", ".join(f"{name} {value}" for name, value in PRESETS["laptop"].items()))
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="shapes", help="mnist, fashionmnist, cifar10, shapes, a folder of images or an .npz file (shapes)")
    add("--data-root", default="data", metavar="DIR", help="where datasets are kept (data)")
    add("--image-size", type=whole(1), default=32, metavar="N", help="height and width (32)")
    add("--flip", action=argparse.BooleanOptionalAction, help="mirror images at random (as suits the dataset: not digits or garments)")
    add = parser.add_argument_group("network").add_argument
    add("--width", type=whole(4), default=128, metavar="N", help="channels of the first level (128)")
    add("--mults", type=numbers, default=(1, 2, 2, 2), metavar="N,..", help="width of each level, as multiples (1,2,2,2)")
    add("--attention", type=numbers, default=(16,), metavar="N,..", help="resolutions of the feature map with attention (16)")
    add("--blocks", type=whole(1), default=2, metavar="N", help="residual blocks a level (2)")
    add("--dropout", type=real(0, 0.999), metavar="P", help="0.1 on cifar10, else 0")
    add("--patch", type=whole(1), default=1, metavar="N", help="fold NxN pixels into channels; 2 is 4 times cheaper; not in the paper (1)")
    add("--film", action=argparse.BooleanOptionalAction, default=False, help="time scales, too, and not only shifts; not in the paper (no)")
    add = parser.add_argument_group("diffusion").add_argument
    add("--T", type=whole(1), default=1000, metavar="N", help="number of steps (1000)")
    add("--beta-small", type=real(0, 1), default=1e-4, metavar="B", help="beta at t = 1 (1e-4)")
    add("--beta-large", type=real(0, 1), default=0.02, metavar="B", help="beta at t = T (0.02)")
    add("--parameterization", choices=("eps", "x0", "v"), default="eps", help="what the network predicts (eps)")
    add("--variance", choices=("large", "small"), default="large", help="of a reverse step: beta_t or the posterior's (large)")
    add = parser.add_argument_group("training").add_argument
    add("--preset", choices=("auto", *PRESETS), default="auto", help="auto: paper on a CUDA GPU, laptop without one (auto)")
    add("--batch-size", type=whole(1), default=128, metavar="N", help="images a step (128)")
    add("--lr", type=real(0, 10), default=2e-4, metavar="R", help="learning rate of Adam (2e-4)")
    add("--warmup", type=whole(0), default=5000, metavar="N", help="steps in which the rate rises linearly (5000)")
    add("--clip", type=real(0, 1e9), default=1.0, metavar="X", help="largest norm of the gradient, 0 for any (1.0)")
    add("--ema-decay", type=real(0, 1), default=0.9999, metavar="D", help="reached as min(D, (1+n)/(10+n)) (0.9999)")
    add("--max-steps", type=whole(1), default=800_000, metavar="N", help="(800000)")
    add("--max-time", type=duration, metavar="TIME", help="stop after 90s, 10m, 8h or HH:MM:SS, resumed parts included (no limit)")
    add("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    add("--precision", choices=("auto", "32", "bf16"), default="auto", help="auto: bf16 autocast where the hardware has it (auto)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(auto)")
    add = parser.add_argument_group("run").add_argument
    add("--run-dir", type=Path, metavar="DIR", help="checkpoints, metrics, samples (runs/DATASET)")
    add("--resume", default="auto", metavar="WHAT", help="auto: the run directory's newest checkpoint; none: start anew; or a file (auto)")
    add("--val-every", type=whole(1), default=5000, metavar="N", help="steps between validations and previews (5000)")
    add("--val-images", type=whole(1), default=10_000, metavar="N", help="test images in a validation (10000)")
    add("--save-every", type=whole(1), default=5000, metavar="N", help="steps between checkpoints (5000)")
    add("--log-every", type=whole(1), default=50, metavar="N", help="steps between logged losses (50)")
    add("--dry-run", action="store_true", help="print size, speed and time to expect, and stop")
    add("--prepare-data", action="store_true", help="download and decode the dataset, and stop")
    return parser


def hardware(device: str, precision: str) -> tuple[str, Any]:
    """Lightning's accelerator ("cpu", "cuda", "mps") and precision. Raises ValueError where the device is not there."""
    import torch
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise ValueError(f"--device {device}: this machine has none; use {' or '.join(n for n, ok in there.items() if ok)}")
    if precision == "auto":
        flags = Path("/proc/cpuinfo").read_text() if device == "cpu" and Path("/proc/cpuinfo").exists() else ""
        fast = ((device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
                or bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags)))
        precision = "bf16" if fast else "32"
    return device, {"bf16": "bf16-mixed", "32": "32-true"}[precision]


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds

    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.loggers import TensorBoardLogger

    import Callbacks
    import Checkpoint
    from CompleteFile import complete_file
    from Dataset import Batches, DiffSet
    from DiffusionModel import DiffusionModel

    try:
        accelerator, precision = hardware(args.device, args.precision)
        preset = args.preset if args.preset != "auto" else "paper" if accelerator == "cuda" else "laptop"
        parser.set_defaults(**PRESETS[preset])
        args = parser.parse_args(argv)
        Checkpoint.check_settings({"size": args.image_size})
        data, unseen = (DiffSet(train, args.dataset, args.data_root, args.image_size) for train in (True, False))
        if args.prepare_data:
            print(f"{data.name} is ready: {len(data):,} images {data.depth}x{data.size}x{data.size}, {len(unseen):,} unseen")
            return 0
        if args.dropout is None:
            args.dropout = 0.1 if data.name == "cifar10" and preset == "paper" else 0.0
        settings = {name: getattr(args, name) for name in (
            "T", "beta_small", "beta_large", "parameterization", "variance", "lr", "warmup", "seed", "width", "mults",
            "attention", "blocks", "dropout", "patch", "film")}
        settings |= {"depth": data.depth, "size": data.size, "dataset": data.name, "class_names": data.classes}
        Checkpoint.check_settings(settings)
        torch.manual_seed(args.seed)
        model = DiffusionModel(**settings)
        flip = data.flip if args.flip is None else args.flip
        device = torch.device(accelerator)
        batches = Batches(data, args.batch_size, args.seed, flip=flip, device=device)
        validation = Batches(unseen, args.batch_size, shuffle=False, limit=args.val_images, device=device)
        run_dir = args.run_dir or Path("runs") / data.name
        course = {"data": data.digest(), "batch_size": args.batch_size, "flip": flip,
                  "clip": args.clip, "ema_decay": args.ema_decay}
        resume = Checkpoint.to_resume(args.resume, run_dir, model, course) if not args.dry_run else None
    except (ValueError, OSError) as error:
        parser.error(str(error))

    done = resume["global_step"] if resume else 0
    if not args.dry_run and done < args.max_steps:
        try:
            with complete_file(run_dir / "config.json") as temporary:
                temporary.write_text(json.dumps({
                    "command": sys.argv, "preset": preset, "settings": vars(args) | {"run_dir": str(run_dir)}, "device": accelerator,
                    "precision": precision, "torch": torch.__version__, "lightning": version("pytorch-lightning")}, indent=1) + "\n")
            Callbacks.write_grid(unseen.images[:36].float() / 127.5 - 1, run_dir / "samples" / "real.png")
        except OSError as error:
            parser.error(f"cannot write to {run_dir} ({error.strerror}): choose another --run-dir")

    size = sum(p.numel() for p in model.parameters())
    print(f"{data.name}: {len(data):,} images {data.depth}x{data.size}x{data.size}, {len(unseen):,} unseen; network of "
          f"{size / 1e6:.1f}M parameters; preset {preset}{' (chosen for ' + accelerator + ')' if args.preset == 'auto' else ''}; "
          f"{accelerator}, {precision}", flush=True)
    if args.dry_run:
        return dry_run(model, batches, args.max_steps, args.max_time, precision)
    if resume and (done >= args.max_steps or (args.max_time and resume["elapsed"] >= args.max_time)):
        print(f"{resume['path']} is already trained, {done} steps in {resume['elapsed']:.0f} s; "
              "a larger --max-steps or --max-time trains it further")
        return 0
    quiet()
    ema = Callbacks.Ema(args.ema_decay)
    checkpoints = Callbacks.Checkpoints(run_dir / "checkpoints", args.save_every, args.max_time, course)
    trainer = pl.Trainer(
        accelerator=accelerator, devices=1, precision=precision, max_steps=args.max_steps, max_epochs=-1,
        gradient_clip_val=args.clip or None, val_check_interval=args.val_every, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, log_every_n_steps=args.log_every, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=run_dir, plugins=[Checkpoint.CompleteCheckpointIO()],
        logger=[Callbacks.MetricsCsv(run_dir / "metrics.csv", ["train_loss", "val_loss", *model.bin_names()], done),
                TensorBoardLogger(run_dir, name="", version="tensorboard")],
        callbacks=[ema, checkpoints, Callbacks.Preview(run_dir / "samples", ema, args.batch_size),
                   Callbacks.Progress(args.batch_size, checkpoints)])
    if done:
        print(f"going on at step {done} of {run_dir}", flush=True)
    try:
        trainer.fit(model, batches, validation, ckpt_path=resume["path"] if resume else None, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        parser.error(f"out of memory at batch size {args.batch_size}: choose a smaller --batch-size or network")
    at = f"at step {trainer.global_step} after {checkpoints.seconds():.0f} s"
    if checkpoints.diverged:
        print(f"train.py: the weights are not finite {at}; the last good checkpoint is {Checkpoint.newest(run_dir)}: "
              "try a smaller --lr", file=sys.stderr)
        return 1
    if signal := checkpoints.stopped_by:
        print(f"stopped by {signal.name} {at}; checkpoint {checkpoints.saved}; run the same command again to go on")
        return 128 + signal
    print(f"trained{'' if trainer.global_step == args.max_steps else ', --max-time is over'}, {at}; checkpoint {checkpoints.saved}")
    return 0


def dry_run(model: Any, batches: Any, max_steps: int, max_time: float | None, precision: str) -> int:
    """Print parameters, FLOPs, memory, speed and time to expect of training, measured over a few steps."""
    import resource

    import torch
    from torch.utils.flop_counter import FlopCounterMode
    device = batches.images.device
    model, optimizer = model.to(device), model.configure_optimizers()["optimizer"]
    x, _ = next(iter(batches))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "32-true"):
            loss = model.get_loss(x, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    with FlopCounterMode(display=False) as flops:
        step()
    step()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < 5:
        step()
        count += 1
    rate = count / (time.monotonic() - started)
    kib = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib
    seconds = min(max_steps / rate, max_time or float("inf"))
    print(f"parameters   {sum(p.numel() for p in model.parameters()):,}\n"
          f"computation  {flops.get_total_flops() / len(x) / 1e9:.2f} GFLOPs an image, forward and backward\n"
          f"memory       {memory / 2**30:.2f} GiB\n"
          f"speed        {rate * len(x):.1f} images/s, {rate:.2f} steps/s at batch {len(x)}\n"
          f"time         {seconds / 3600:.1f} hours for {min(max_steps, int(seconds * rate)):,} steps, without validation and previews")
    return 0


def quiet() -> None:
    """Silence Lightning's hints about things that are meant here."""
    import logging
    import warnings
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first step; from then on Ctrl-C saves
        print("\ntrain.py: interrupted before training began", file=sys.stderr)
        sys.exit(130)
