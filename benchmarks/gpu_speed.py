"""Parts of gpu.py: the speed of training steps, without the Trainer.

eager        the presets as they are, not compiled
graph        network, loss, backward and Adam captured in one CUDA graph, channels_last
variants     paper, eager: float32, TF32, channels_last, cudnn.benchmark
*-compiled   the network compiled; -again: in a new process, with the code that torch has kept
*-loss       noise, network and loss compiled together
diffusers    the loop of its training script, if it is installed
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gpu_part
import torch
import torch.nn.functional as F
from gpu_part import ROOT, Options, Results
from torch.utils.flop_counter import FlopCounterMode

from runtime import devices
from runtime.compiling import keep_compiled_code

SECONDS = 4  # of timed steps
WARM_UP = 3  # steps
PAPER = "--preset paper --batch-size 128"


class Step:
    """A training step of train.py on one batch, without waiting for the device."""

    def __init__(
        self,
        options: Options,
        flags: str,
        channels_last: bool = False,
        precision: str = "auto",
    ):
        run, machine = options.set_up(flags, precision)
        self.device, self.bf16 = machine.device, machine.precision == "bf16"
        self.model = run.model.to(machine.device).train()
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch = next(iter(run.batches))
        self.optimizer = self.model.configure_optimizers(1)["optimizer"]
        self.loss: Callable[..., Any] = self.model.get_loss
        self.flops = count_flops(self)

    @property
    def images(self) -> int:
        return len(self.batch[0])

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.batch, 0)
        loss.backward()
        self.optimizer.step()


class GraphStep:
    """A training step with fixed noise, replayed from a CUDA graph; on a CPU, without a graph."""

    def __init__(self, options: Options, flags: str):
        run, machine = options.set_up(flags)
        self.device = machine.device
        self.images = run.settings.batch_size
        net: Any = run.model.unet.to(machine.device).train()
        net.to(memory_format=torch.channels_last)
        on_gpu = self.device.type == "cuda"
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True, capturable=on_gpu)
        x, *others = net.example(self.images)
        x = torch.randn_like(x).contiguous(memory_format=torch.channels_last)

        def step() -> None:
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=machine.precision == "bf16"
            ):
                loss = F.mse_loss(net(x, *others).float(), x)
            loss.backward()
            optimizer.step()

        self.step = capture(step, optimizer) if on_gpu else step
        self.flops = 0.0  # a replay cannot be counted

    def __call__(self) -> None:
        self.step()


def capture(step: Callable[[], None], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Capture a step in a CUDA graph, after three steps on another stream, as torch's notes on
    CUDA graphs do it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def images_per_second(step: Any) -> float:
    """The speed after a warm-up, timed for `SECONDS`; on a CPU, of one step."""
    on_gpu = step.device.type == "cuda"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(WARM_UP if on_gpu else 0):
        step()
    synchronize()
    began, count = time.perf_counter(), 0
    while count == 0 or (on_gpu and time.perf_counter() - began < SECONDS):
        for _ in range(10 if on_gpu else 1):
            step()
            count += 1
        synchronize()
    return count * step.images / (time.perf_counter() - began)


def measure(name: str, make: Callable[[], Any], **more: Any) -> dict[str, Any]:
    """The result for one variant, whose step `make` returns.

    "gib" is the peak since before `make`, because a CUDA graph allocates when it is captured.
    """
    devices.peak_memory("cuda" if torch.cuda.is_available() else "cpu", reset=True)
    step = make()
    rate = images_per_second(step)
    found = {"variant": name, "batch": step.images, "images_per_second": round(rate, 1), **more}
    if step.flops:
        found["tflops_per_second"] = round(step.flops * rate / step.images / 1e12, 3)
    found["gib"] = round(devices.peak_memory(step.device.type) / 2**30, 2)
    return found


def count_flops(step: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def eager(options: Options) -> Results:
    presets = {"paper, eager": PAPER, "speedrun, eager": "--preset speedrun"}
    for name, flags in {**presets, "laptop, eager": "--preset laptop"}.items():
        yield measure(name, partial(Step, options, flags))


def graph(options: Options) -> Results:
    for name, flags in (
        ("laptop", "--preset laptop"),
        ("paper", PAPER),
        ("paper", "--preset paper --batch-size 512"),
    ):
        make = partial(GraphStep, options, flags)
        yield measure(f"{name}, CUDA graph, channels_last", make)


def variants(options: Options) -> Results:
    for precision in ("32",) if options.rehearse else ("32", "tf32"):
        name = f"paper, eager, precision {precision}"
        yield measure(name, partial(Step, options, PAPER, precision=precision))
    make = partial(Step, options, PAPER, channels_last=True)
    yield measure("paper, eager, channels_last", make)
    with flag(torch.backends.cudnn, "benchmark", True):
        yield measure("paper, eager, cudnn.benchmark", partial(Step, options, PAPER))


@contextlib.contextmanager
def flag(owner: Any, name: str, value: bool) -> Iterator[None]:
    """Set an attribute for the duration of a block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


def compiled(
    name: str,
    flags: str = PAPER,
    mode: str | None = None,
    loss: bool = False,
    channels_last: bool = False,
) -> Callable[[Options], Results]:
    """A part that compiles the network, or the whole loss, and measures the time that this takes.

    A rehearsal traces the network without compiling it.
    """

    def part(options: Options) -> Results:
        keep_compiled_code()
        step = Step(options, flags, channels_last)
        how: dict[str, Any] = {"backend": "eager"} if options.rehearse else {"mode": mode}
        if loss:
            step.loss = torch.compile(step.model.get_loss, **how)
        else:
            step.model.unet.compile(**how)
        began = time.perf_counter()
        step()
        if step.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = round(time.perf_counter() - began, 1)
        yield measure(name, lambda: step, seconds_to_compile=seconds)

    return part


def diffusers(options: Options) -> Results:
    """Time the training loop of diffusers, run by contender.py."""
    missing = [one for one in ("diffusers", "accelerate") if not importlib.util.find_spec(one)]
    if missing:
        yield {"skipped": f"{' and '.join(missing)} are not installed"}
        return
    network, batch = ("laptop", 2) if options.rehearse else ("paper", 128)
    steps = 1 if options.rehearse else 50
    command = [sys.executable, str(ROOT / "benchmarks" / "contender.py"), "diffusers"]
    command += ["--network", network, "--batch", str(batch), "--device", options.device]
    done = subprocess.run(
        command,
        input=f"train {WARM_UP}\ntrain {steps}\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    rate = round(steps * batch / seconds, 1)
    yield {"variant": f"diffusers, {network}", "batch": batch, "images_per_second": rate}


PARTS: dict[str, Callable[[Options], Results]] = {
    "eager": eager,
    "graph": graph,
    "variants": variants,
    "paper-compiled": compiled("paper, compiled"),
    "paper-compiled-again": compiled("paper, compiled, second start"),
    "paper-compiled-channels-last": compiled("paper, compiled, channels_last", channels_last=True),
    "paper-compiled-256": compiled("paper, compiled", "--preset paper --batch-size 256"),
    "paper-compiled-loss": compiled("paper, noise, network and loss compiled", loss=True),
    "paper-reduce-overhead": compiled("paper, reduce-overhead", mode="reduce-overhead"),
    "paper-max-autotune": compiled(
        "paper, max-autotune-no-cudagraphs", mode="max-autotune-no-cudagraphs"
    ),
    "paper-compiled-reindexing-0": compiled("paper, compiled, loop reindexing off"),
    "paper-compiled-reindexing-1": compiled("paper, compiled, loop reindexing on"),
    "laptop-compiled": compiled("laptop, compiled", "--preset laptop"),
    "diffusers": diffusers,
}


if __name__ == "__main__":
    gpu_part.main(PARTS)
