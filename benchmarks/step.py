"""Measure where the time of a training step in train.py goes, on a CPU; print a table.

    python benchmarks/step.py                                # the laptop preset
    python benchmarks/step.py --flags='--preset paper --batch-size 16' --steps 20

The parts are timed in one run of the unchanged train.py; "the rest" is Lightning, the progress line
and other callbacks.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from speed import machine

import Dataset
import train
import training.trainer
from diffusion.optimizers import Muon
from DiffusionModel import DiffusionModel
from training.dropout_seed import DropoutSeed
from training.ema import Ema
from training.gradient_guard import GradientGuard
from training.progress import Progress

spent: Counter[str] = Counter()


def timed(owner: Any, method: str, name: str, inner: tuple[str, ...] = ()) -> None:
    """Wrap `owner.method` to add its time to `spent[name]`.

    The time that is added to `inner` during a call is subtracted.
    """
    original = getattr(owner, method)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        began, before = time.perf_counter(), sum(spent[one] for one in inner)
        try:
            return original(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began - (sum(spent[one] for one in inner) - before)

    setattr(owner, method, replaced)


def timed_batches(original: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    def batches(self: Any) -> Iterator[Any]:
        served, began = original(self), time.perf_counter()
        for batch in served:
            spent["data"] += time.perf_counter() - began
            yield batch
            began = time.perf_counter()

    return batches


def time_steps_of(optimizer: type[torch.optim.Optimizer]) -> None:
    """Time an optimizer's steps without forward and backward, which Lightning runs inside them."""
    original: Any = optimizer.step

    def step(self: Any, closure: Any = None) -> Any:
        if closure is None:  # Muon's call of Adam's step
            return original(self)
        loss = closure()
        began = time.perf_counter()
        original(self)
        spent["optimizer"] += time.perf_counter() - began
        return loss

    optimizer.step = step  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=400,
        metavar="N",
        help="timed steps, after N/4 warm-up steps (400)",
    )
    parser.add_argument("--flags", default="--preset laptop", help="for train.py (--preset laptop)")
    args = parser.parse_args()
    if "--accumulate" in args.flags:
        parser.error("the parts of --accumulate are not timed: leave it out")
    timed(DiffusionModel, "forward", "network, forward")
    timed(DiffusionModel, "get_loss", "t, noise and loss", ("network, forward",))
    timed(DiffusionModel, "backward", "network, backward")
    timed(GradientGuard, "on_before_optimizer_step", "norm of the gradient")
    timed(torch.optim.Adam, "zero_grad", "optimizer")
    time_steps_of(torch.optim.Adam)
    time_steps_of(Muon)
    timed(Ema, "on_step_end", "average of the weights")
    timed(DropoutSeed, "on_train_batch_start", "seed of dropout")
    serve: Any = timed_batches(Dataset.Batches.__iter__)
    Dataset.Batches.__iter__ = serve

    class Clock(Progress):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == args.steps // 4:
                spent.clear()
                self.first = time.perf_counter()
            elif trainer.global_step == args.steps // 4 + args.steps:
                report((time.perf_counter() - self.first) / args.steps, args.steps)

    training.trainer.Progress = Clock
    steps, never = args.steps + args.steps // 4 + 1, str(10**9)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        words = ["--dataset", "shapes", *args.flags.split(), "--device", "cpu"]
        words += ["--max-time", "100h"]
        words += ["--max-steps", str(steps), "--val-every", never, "--val-images", "1"]
        train.main([*words, "--save-every", never, "--run-dir", folder])


def report(whole: float, steps: int) -> None:
    known = dict(spent.most_common())
    rows = {name: seconds / steps for name, seconds in known.items()}
    rows["the rest"] = whole - sum(rows.values())
    table = "\n".join(
        f"| {name} | {seconds * 1e3:.2f} ms | {seconds / whole:.1%} |"
        for name, seconds in rows.items()
    )
    print(
        f"{machine('cpu')}\n\n| part of a training step of {whole * 1e3:.1f} ms "
        f"(mean of {steps}) | time | share |\n"
        f"|---|---|---|\n{table}",
        file=sys.__stdout__,
    )


if __name__ == "__main__":
    main()
