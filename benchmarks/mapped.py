"""Measure memory and speed of training on memory-mapped images; print Markdown tables.

    python benchmarks/mapped.py --dataset photos --image-size 64

Memory: separate processes each train a few steps (on 64 images, on all images mapped, and on all
images in memory) and then read /proc/self/status. RssAnon is memory of the process itself; RssFile
is file pages, which the operating system can reclaim. Speed: both ways take turns of a few steps in
one process, because the speed of a machine varies; the ratio compares neighbouring turns. CPU time
includes the thread that reads ahead, and is less affected by other programs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from speed import machine

import train
from image_data import mapped_images
from runtime.launcher import Machine, launch
from training.dry_run import Step
from training.settings import TrainingSettings
from training.setup import set_up

LIMITS = {"mapped": 0, "in memory": 2**60}  # most bytes of images that are kept in memory
FEW = 64  # images in the run whose memory counts as torch's own


def endless(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


class Training:
    """Training steps on new batches, without the Trainer."""

    def __init__(self, way: str, words: list[str], machine: Machine):
        mapped_images.MAX_BYTES_IN_MEMORY = LIMITS[way]
        flags = train.parse_with_preset([*words, "--device", "cpu"], "laptop")
        settings = TrainingSettings.from_flags(vars(flags), "laptop")
        run = set_up(settings, machine)
        self.batches = endless(run.batches)
        self.step = Step(run, machine)

    def run(self, steps: int) -> np.ndarray:
        """Run this many steps; return the wall time, the CPU time and the wait for images."""
        began, cpu_began, waited = time.perf_counter(), time.process_time(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            self.step.batch = next(self.batches)
            waited += time.perf_counter() - asked
            self.step()
        return np.array([time.perf_counter() - began, time.process_time() - cpu_began, waited])


def print_memory(way: str, words: list[str], steps: int) -> None:
    """Train, and print RssAnon and RssFile in MiB."""
    training = Training(way, words, launch("mapped.py", "cpu"))
    training.run(steps)
    status = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in status)
    print(*(int(values[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile")))


def memory_of(way: str, words: list[str], steps: int) -> tuple[int, int]:
    """Return RssAnon and RssFile, in MiB, of a process that trains."""
    command = [sys.executable, __file__, "--child", way, "--steps", str(steps), *words]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    anonymous, of_files = printed.split()[-2:]
    return int(anonymous), int(of_files)


def memory_table(words: list[str], size: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.npz"
        np.savez(few, train_images=np.zeros((FEW, int(size), int(size), 3), np.uint8))
        own = memory_of("mapped", [*words, "--dataset", str(few)], steps)
    print("| images | RssAnon, MiB | RssFile, MiB | RssAnon beyond torch's own, MiB |")
    print("| --- | --- | --- | --- |")
    print(f"| {FEW} | {own[0]} | {own[1]} | 0 |")
    for way in LIMITS:
        anonymous, of_files = memory_of(way, words, steps)
        print(f"| {way} | {anonymous} | {of_files} | {anonymous - own[0]} |", flush=True)


def speed_table(words: list[str], steps: int, rounds: int) -> None:
    here = launch("mapped.py", "cpu")
    ways = {way: Training(way, words, here) for way in LIMITS}
    for training in ways.values():
        training.run(2)
    seconds: dict[str, list[np.ndarray]] = {way: [] for way in LIMITS}
    for turn in range(rounds):
        for way in list(ways) if turn % 2 else reversed(list(ways)):
            seconds[way].append(ways[way].run(steps) / steps)
    print("| images | ms/step, median | CPU time | waiting for images |")
    print("| --- | --- | --- | --- |")
    for way, times in seconds.items():
        wall, cpu, waiting = 1000 * np.median(times, axis=0)
        print(f"| {way} | {wall:.1f} | {cpu:.1f} | {waiting:.2f} |")
    print(f"\nspeed of mapped relative to in-memory images, {rounds} pairs of {steps} steps:")
    for column, name in enumerate(("time", "CPU time")):
        pairs = zip(*seconds.values())
        ratios = [memory[column] / mapped[column] for mapped, memory in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"by {name}: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dataset", required=True, help="a folder of images or an .npz file")
    parser.add_argument("--data-root", default="data", help="where it is decoded (data)")
    parser.add_argument("--image-size", default="64", help="height and width (64)")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn (5)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each kind of images (20)")
    parser.add_argument("--child", choices=LIMITS, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("memory", "speed", "both"), default="both")
    args = parser.parse_args()
    words = ["--dataset", args.dataset, "--data-root", args.data_root]
    words += ["--image-size", args.image_size]
    if args.child:
        print_memory(args.child, words, args.steps)
        return
    print(f"{machine('cpu')}\n")
    if args.what != "speed":
        memory_table(words, args.image_size, args.steps)
        print()
    if args.what != "memory":
        speed_table(words, args.steps, args.rounds)


if __name__ == "__main__":
    main()
