"""Compare the speed of training and sampling with other projects: a table for each network.

    bash run.sh bench                                              # both networks, all contenders
    python benchmarks/speed.py --network laptop --rounds 10        # one network
    python benchmarks/speed.py --contenders ours,plain             # needs no other package
    python benchmarks/speed.py --contenders ours,plain --neighbours 2    # beside two busy programs

Every contender runs in its own process (contender.py). They take turns for several rounds, and each
number is the median over the rounds, so that other programs on the machine affect all contenders
alike. The table is printed as Markdown.

    training        images/s of the whole training loop
    loop            share of the loop's time outside forward, backward and optimizer step
    sampling        images/s of one batch in 20 steps
    convolutions    FLOP/s of training relative to running only convolutions of these sizes
    matmul          FLOP/s of training relative to one large matrix product
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
NAMES = {
    "ours": "this project",
    "plain": "its network in a plain float32 loop",
    "diffusers": "diffusers, train_unconditional's defaults",
    "diffusers-best": "diffusers at its best: channels_last, bf16 if supported",
    "lucidrains": "lucidrains' Trainer",
    "convolutions": "",
    "matmul": "",
}
LIMITS = ("convolutions", "matmul")
NEEDS = {
    "diffusers": ("diffusers", "accelerate"),
    "diffusers-best": ("diffusers", "accelerate"),
    "lucidrains": ("denoising_diffusion_pytorch",),
}
STEPS = 20


class Worker:
    """A contender's process, and the seconds that its turns took."""

    def __init__(self, name: str, network: str, batch: int, device: str, flags: str):
        command = [
            sys.executable,
            str(HERE / "contender.py"),
            name,
            "--network",
            network,
            "--batch",
            str(batch),
            "--device",
            device,
        ]
        self.process = subprocess.Popen(
            [*command, f"--flags={flags}"],
            text=True,
            cwd=HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.name, self.limit = name, name in LIMITS
        self.count = 1
        self.found: dict[str, list[float]] = {"train": [], "bare": [], "sample": []}

    def ask(self, what: str, count: int) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{what} {count}\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            status = self.process.wait()
            sys.exit(f"speed.py: {self.name} ended with status {status}; its output is above")
        return json.loads(line)

    def warm_up(self, seconds: float) -> None:
        self.ask("bare", 2)
        self.ask("train", 2)
        if not self.limit:
            self.ask("sample", 1)
        self.count = max(1, round(seconds / max(1e-4, self.ask("train", 1)["seconds"])))

    def turn(self) -> None:
        for what in ("train", "bare") if not self.limit else ("bare",):
            self.found[what].append(self.ask(what, self.count)["seconds"] / self.count)
        if not self.limit:
            self.found["sample"].append(self.ask("sample", STEPS)["seconds"])

    def median(self, what: str) -> float:
        return statistics.median(self.found[what])

    def loop(self) -> float:
        """The share of training time outside the network, from pairs of turns."""
        return 1 - statistics.median(
            bare / whole for whole, bare in zip(self.found["train"], self.found["bare"])
        )


@contextlib.contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Inside the block, run this many programs that each keep a core busy."""
    command = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


COLUMNS = (
    "",
    "parameters",
    "GFLOP per image",
    "training, images/s",
    "loop",
    "sampling, images/s",
    "peak memory",
)


def measure(network: str, batch: int, args: argparse.Namespace) -> None:
    workers = [Worker(name, network, batch, args.device, args.flags) for name in args.contenders]
    with tqdm(
        total=len(workers) * (1 + args.rounds), desc=f"{network}, batch {batch}", unit=" turns"
    ) as bar:
        for worker in workers:
            worker.warm_up(args.seconds)
            bar.update()
        for _ in range(args.rounds):
            for worker in workers:
                worker.turn()
                bar.update()
    about = {worker.name: worker.ask("about", 0) for worker in workers}
    limits = {
        worker.name: about[worker.name]["flops"] / worker.median("bare")
        for worker in workers
        if worker.limit
    }
    reached = "".join(f"; {name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in limits.items())
    print(f"\n**{network}**, batch {batch}, 3x32x32{reached}\n")
    columns = [*COLUMNS, *(f"of {name}" for name in limits)]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for worker in workers:
        if not worker.limit:
            known, seconds = about[worker.name], worker.median("train")
            cells = [
                NAMES[worker.name] + (f" ({known['version']})" if known["version"] else ""),
                f"{known['parameters'] / 1e6:.2f}M",
                f"{known['flops'] / batch / 1e9:.2f}",
                f"{batch / seconds:.1f}",
                f"{worker.loop():.1%}",
                f"{batch / worker.median('sample'):.2f}",
                f"{known['memory'] / 2**30:.2f} GiB",
                *(f"{known['flops'] / seconds / rate:.0%}" for rate in limits.values()),
            ]
            print("| " + " | ".join(cells) + " |", flush=True)
    for worker in workers:
        assert worker.process.stdin
        worker.process.stdin.close()
        worker.process.wait()


def machine(device: str) -> str:
    """The hardware, the versions and the date, in one line."""
    import torch

    from runtime import devices

    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = match[1] if (match := re.search(r"model name\s*: (.*)", known)) else platform.processor()
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{cpu}, {torch.get_num_threads()} threads"
    )
    precision = (
        "bf16" if devices.pick_precision(device, "auto") == "bf16" else "float32 (no fast bf16)"
    )
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}; {precision}; {versions}; {datetime.date.today()}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network",
        choices=("paper", "laptop", "both"),
        default="both",
        help="Ho et al.'s, or laptop's (both)",
    )
    parser.add_argument(
        "--batch", type=int, help="images a step (laptop 32; paper 16 on a CPU, 128 on a GPU)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (7)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="seconds of training in a turn, about (2)"
    )
    parser.add_argument(
        "--contenders", default=",".join(NAMES), help=f"some of {', '.join(NAMES)} (all)"
    )
    parser.add_argument(
        "--flags", default="", help="more flags for train.py, as in --flags='--compile default'"
    )
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="N", help="busy programs beside them (0)"
    )
    args = parser.parse_args()
    args.contenders = args.contenders.split(",")
    if unknown := set(args.contenders) - NAMES.keys():
        parser.error(f"unknown contender {min(unknown)}: choose from {', '.join(NAMES)}")
    if missing := [
        name
        for name in args.contenders
        if not all(map(importlib.util.find_spec, NEEDS.get(name, ())))
    ]:
        parser.error(
            f"the packages for {' and '.join(missing)} are not installed: "
            "pip install -r benchmarks/requirements.txt, "
            "or choose other --contenders"
        )
    return args


def main() -> None:
    args = parse_args()
    print(machine(args.device), flush=True)
    for network in ("laptop", "paper") if args.network == "both" else (args.network,):
        batch = 128 if args.device == "cuda" else 16
        if network == "laptop":
            batch = 32
        with busy_neighbours(args.neighbours):
            measure(network, args.batch or batch, args)


if __name__ == "__main__":
    main()
