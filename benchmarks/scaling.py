"""Measure the cost of a second process, and what memory depends on; print Markdown tables.

    python benchmarks/scaling.py                     # all, about ten minutes on two cores
    python benchmarks/scaling.py --what processes    # 1 and 2 processes over gloo, a thread each
    python benchmarks/scaling.py --what memory       # width, image size, batch size, memory savers
    python benchmarks/scaling.py --what kept         # activations of an image, a few seconds

processes: compare `train.py --devices 2` with two independent runs at the same time, each with half
of the batch. The work and the cores are the same; only the communication is added. memory: as
`train.py --dry-run` prints it (on a CPU that of the whole process, torch included).
"""

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from speed import machine
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MEMORY = {  # flags that change Ho et al.'s network at batch 16
    "3x32x32, width 128, batch 16": [],
    "width 64": ["--width", "64"],
    "width 192": ["--width", "192"],
    "batch 32": ["--batch-size", "32"],
    "batch 32 in two parts": ["--batch-size", "32", "--accumulate", "2"],
    "batch 32, gradient checkpointing": ["--batch-size", "32", "--gradient-checkpointing"],
    "64x64": ["--image-size", "64"],
    "64x64 in four parts": ["--image-size", "64", "--accumulate", "4"],
    "64x64, gradient checkpointing": ["--image-size", "64", "--gradient-checkpointing"],
    "128x128, batch 4": ["--image-size", "128", "--batch-size", "4"],
    "128x128, batch 4 in four parts, gradient checkpointing": [
        "--image-size",
        "128",
        "--batch-size",
        "4",
        "--accumulate",
        "4",
        "--gradient-checkpointing",
    ],
}


def train(*flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "train.py", "--dataset", "shapes", *flags],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"} if "--max-steps" in flags else None,
    )


def output_of(process: "subprocess.Popen[str]") -> str:
    """Wait for a run and return what it printed. Exits if it failed."""
    output = process.communicate()[0]
    if process.returncode:
        sys.exit(
            f"scaling.py: {shlex.join(process.args)} ended with status "  # type: ignore[arg-type]
            f"{process.returncode}:\n{output}"
        )
    return output


def seconds(output: str) -> float:
    """Return the training time, without startup, from the output of a run."""
    found = re.search(r"trained, at step \d+ after (\d+) s", output)
    assert found, output
    return float(found[1])


def processes(steps: int, rounds: int) -> None:
    alone, together = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in tqdm(range(rounds), desc="1 and 2 processes", unit=" rounds"):
            common = [
                *("--preset", "laptop", "--max-steps", str(steps)),
                *("--val-every", str(steps), "--val-images", "1"),
            ]
            independent = [
                train(*common, "--batch-size", "16", "--run-dir", f"{folder}/{i}-{j}")
                for j in range(2)
            ]
            alone.append(statistics.mean(seconds(output_of(process)) for process in independent))
            pair = ["--batch-size", "32", "--devices", "2", "--run-dir", f"{folder}/{i}"]
            together.append(seconds(output_of(train(*common, *pair))))
    ratio = statistics.median(b / a for a, b in zip(alone, together))
    print(
        f"\n| laptop network, {steps} steps, one thread each | seconds, median of {rounds} |\n"
        "|---|---|\n"
        f"| two runs, batch 16 each, at the same time | {statistics.median(alone):.0f} |\n"
        f"| one run, batch 32, on two processes | {statistics.median(together):.0f} |\n\n"
        f"Two processes take {abs(ratio - 1):.0%} {'more' if ratio > 1 else 'less'} time.",
        flush=True,
    )


def memory() -> None:
    print("\n| Ho et al.'s network | memory | images/s | GFLOP per image |\n|---|---|---|---|")
    for name, flags in tqdm(MEMORY.items(), desc="memory", unit=" networks"):
        output = output_of(train("--preset", "paper", "--batch-size", "16", *flags, "--dry-run"))
        cells = [
            re.search(pattern, output)
            for pattern in (r"memory +(.* GiB)", r"speed +(\S+)", r"computation +(\S+)")
        ]
        print(
            f"| {name} | " + " | ".join(cell[1] if cell else "?" for cell in cells) + " |",
            flush=True,
        )


def kept(size: int, recompute: bool) -> float:
    """MiB of activations that Ho et al.'s network keeps for each image in the batch, in bf16."""
    import torch

    from Unet import Unet

    net, found = Unet(size=size), []
    net.recompute_activations(recompute)
    for count in (2, 4):
        storages: dict[int, int] = {}

        def pack(values: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[values.untyped_storage().data_ptr()] = values.untyped_storage().nbytes()
            return values

        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values),
        ):
            net(torch.randn(count, 3, size, size), torch.arange(count))
        found.append(sum(storages.values()))
    return (found[1] - found[0]) / 2 / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--what", choices=("all", "processes", "memory", "kept"), default="all", help="(all)"
    )
    parser.add_argument("--steps", type=int, default=400, help="steps of each training (400)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (3)")
    args = parser.parse_args()
    print(machine("cpu"), flush=True)
    if args.what in ("all", "processes"):
        processes(args.steps, args.rounds)
    if args.what in ("all", "memory"):
        memory()
    if args.what in ("all", "kept"):
        print(
            "\n| Ho et al.'s network | kept for the gradient, MiB an image "
            "| with gradient checkpointing |\n|---|---|---|"
        )
        for size in (32, 64):
            print(
                f"| {size}x{size} | {kept(size, False):.0f} | {kept(size, True):.0f} |", flush=True
            )
