"""Check and measure this project on a GPU; write each result to DIR/results.jsonl immediately.

    python benchmarks/gpu.py --out gpu
    # as much as fits into five minutes
    python benchmarks/gpu.py --out gpu --minutes 5
    # most parts on a CPU, with tiny networks, to find mistakes before a GPU is used
    python benchmarks/gpu.py --out rehearsal --rehearse

The parts run one after the other, the most valuable first, each in a process of its own with a time
limit. A part that no longer fits into --minutes is skipped. Other output of a part is in
DIR/PART.log. The exit status is 1 if a part failed or was stopped. The parts, by topic:

    correctness  the errors of the three precisions, whether samples depend on the batch size,
                 whether a resumed run equals an uninterrupted one
    run          the speedrun preset on CIFAR-10, 5000 samples, their distance to the training
                 images, a grid, the weights in half precision
    speed        training steps: eager, compiled, and in one CUDA graph
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.arguments import Parser, real
from runtime.version import versions

HERE = Path(__file__).resolve().parent
CACHE = "torchinductor"  # compiled code, empty at the start
REHEARSAL_LIMIT = 600  # seconds for each part; processors are slow and busy


@dataclass(frozen=True)
class Part:
    """A part of the measurements.

    script: the file that runs it. seconds: its time limit, and the time that must be left to start
    it. needs: a part that must be done before. rehearsed: whether a rehearsal runs it; parts that
    would only repeat the code of another one are left out.
    """

    script: str
    name: str
    seconds: int
    environment: tuple[tuple[str, str], ...] = ()
    rehearsed: bool = True
    needs: str = ""


# pytorch issue 189488: a loop order that slows down some compiled networks
REINDEXING = "TORCHINDUCTOR_LOOP_REINDEXING_AFTER_FUSION"

PARTS = (
    Part("gpu_checks.py", "precision", 60),
    Part("gpu_checks.py", "batch-size", 60),
    Part("gpu_run.py", "train", 240),
    Part("gpu_run.py", "samples", 60, needs="train"),
    Part("gpu_run.py", "export", 30, needs="train"),
    Part("gpu_speed.py", "eager", 60),
    Part("gpu_speed.py", "paper-compiled", 150),
    Part("gpu_run.py", "evaluate", 180, needs="train"),
    Part("gpu_speed.py", "graph", 90),
    Part("gpu_speed.py", "paper-compiled-again", 150, rehearsed=False),
    Part("gpu_checks.py", "resume", 120),
    Part("gpu_speed.py", "laptop-compiled", 120, rehearsed=False),
    Part("gpu_speed.py", "variants", 90),
    Part("gpu_speed.py", "paper-compiled-channels-last", 150),
    Part("gpu_speed.py", "paper-compiled-256", 150, rehearsed=False),
    Part("gpu_speed.py", "paper-compiled-loss", 150),
    Part("gpu_speed.py", "paper-reduce-overhead", 150, rehearsed=False),
    Part("gpu_speed.py", "paper-max-autotune", 300, rehearsed=False),
    Part("gpu_speed.py", "paper-compiled-reindexing-0", 150, ((REINDEXING, "0"),), False),
    Part("gpu_speed.py", "paper-compiled-reindexing-1", 150, ((REINDEXING, "1"),), False),
    Part("gpu_speed.py", "diffusers", 120),
)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results (required)"
    )
    parser.add_argument(
        "--minutes",
        type=real(0, 1e4),
        default=10.0,
        metavar="N",
        help="time for all parts together, unless they are rehearsed (10)",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="run most parts on a CPU, with tiny networks"
    )
    parser.add_argument("--dataset", default="cifar10", help="dataset of the run (cifar10)")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="its folder (data)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    device = find_device(args.rehearse)
    if not device:
        parser.error("no CUDA GPU is available: add --rehearse to rehearse on a CPU")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.jsonl").touch()
        shutil.rmtree(args.out / CACHE, ignore_errors=True)
    except OSError as error:
        parser.error(f"cannot write to {args.out} ({error.strerror}): choose another --out")
    deadline = time.monotonic() + 60 * args.minutes
    stop_the_part_with_this_program()
    with open(args.out / "results.jsonl", "a") as results:
        write(results, part="machine", device=device, versions=versions(), commit=commit())
        statuses: dict[str, str] = {}
        for part in PARTS:
            if args.rehearse and not part.rehearsed:
                continue
            if part.needs and statuses.get(part.needs) != "done":
                write(results, part=part.name, skipped=f"it needs the part {part.needs}")
                statuses[part.name] = "skipped"
                continue
            statuses[part.name] = run(part, args, deadline, results)
    counts = Counter(statuses.values())
    print("  ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts["failed"] or counts["stopped"] else 0


def stop_the_part_with_this_program() -> None:
    """Let signals raise SystemExit, so that `run` stops its part. nohup still ignores SIGHUP."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


def find_device(rehearse: bool) -> str:
    """The name of the GPU, "cpu" for a rehearsal, or "" if there is no GPU."""
    if rehearse:
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def commit() -> str:
    """The commit of this project, or "" outside of a git repository."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def run(part: Part, args: argparse.Namespace, deadline: float, results: TextIO) -> str:
    """Run a part and write its results; return "done", "failed", "stopped" or "skipped"."""
    left = deadline - time.monotonic()
    if left < part.seconds and not args.rehearse:
        write(results, part=part.name, skipped=f"{left:.0f} s are left, it may need {part.seconds}")
        return "skipped"
    command = [sys.executable, str(HERE / part.script), part.name, "--out", str(args.out)]
    command += ["--dataset", args.dataset, "--data-root", args.data_root]
    command += ["--rehearse"] if args.rehearse else []
    began, cache = time.monotonic(), str((args.out / CACHE).resolve())
    with open(args.out / f"{part.name}.log", "w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, **dict(part.environment)},
            start_new_session=True,
        )
        try:
            limit = REHEARSAL_LIMIT if args.rehearse else part.seconds
            status = collect(process, part, limit, results)
        finally:
            if process.poll() is None:  # this program is being stopped
                os.killpg(process.pid, signal.SIGKILL)
    seconds = round(time.monotonic() - began, 1)
    write(results, part=part.name, status=status, seconds=seconds)
    return status


def collect(process: "subprocess.Popen[str]", part: Part, limit: float, results: TextIO) -> str:
    """Write each line that a part prints; stop it after `limit` seconds. Return how it ended."""
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)

    over = threading.Timer(limit, stop)
    over.daemon = True
    over.start()
    assert process.stdout
    for line in process.stdout:
        write(results, part=part.name, **json.loads(line))
    status = process.wait()
    over.cancel()
    if stopped.is_set():
        return "stopped"
    return "failed" if status else "done"


def write(results: TextIO, **found: Any) -> None:
    """Append one result to the file, and print it."""
    results.write(json.dumps(found) + "\n")
    results.flush()
    os.fsync(results.fileno())
    part, rest = found["part"], {k: v for k, v in found.items() if k != "part"}
    print(f"{part:30}", "  ".join(f"{name} {value}" for name, value in rest.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
