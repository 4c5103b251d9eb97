"""The hardware of a run: which device, in which precision, the network translated for it, and the most memory it took."""

import os
import platform
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]  # Lightning's names


def pick_device(name: str) -> str:
    """ "cuda", "mps" or "cpu"; the first of them that is there for "auto". Raises ValueError where `name` is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name != "auto" and not there[name]:
        raise ValueError(
            f"--device {name}: this machine has none; use {' or '.join(n for n, ok in there.items() if ok)}"
        )
    return next(n for n, ok in there.items() if ok and name in ("auto", n))


def pick_precision(device: str, name: str) -> Precision:
    """Lightning's name of the precision; "auto" is bf16 autocast where `device` computes in it, and float32 elsewhere."""
    if name == "auto":
        flags = (
            Path("/proc/cpuinfo").read_text()
            if device == "cpu" and Path("/proc/cpuinfo").exists()
            else ""
        )
        fast = (
            device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        ) or bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))
        name = "bf16" if fast else "32"
    return "bf16-mixed" if name == "bf16" else "32-true"


def hardware(device: str) -> str:
    """What computes on `device`, by its own name, and the cores that this process may use: "AMD EPYC 7763, 2 cores"."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(
        r"^model name\s*:\s*(.+)$", info, re.MULTILINE
    )  # of x86; others are told by their architecture
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    processor = f"{named[1].strip() if named else platform.processor() or platform.machine()}, {cores} core{'s' * (cores > 1)}"
    return f"{torch.cuda.get_device_name()}; {processor}" if device == "cuda" else processor


def compiled(
    net: torch.nn.Module, mode: str, inputs: tuple[Any, ...], precision: str
) -> tuple[Callable[..., Any] | None, str]:
    """net.forward as torch.compile translates it for as many images as `inputs` has, tried with them: forward and, in training,
    backward; and ""; or None and why it cannot be, in a line. Another number of images is given to the network itself, which stays as it
    is, with the names of its weights. Raises torch.OutOfMemoryError."""
    run = torch.compile(net.forward, mode=mode)

    def translated(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x) != len(inputs[0]):
            return net(x, *rest)
        return (
            run(x, *rest) if net.training else run(x, *rest).clone()
        )  # CUDA graphs write the next answer in the same place

    try:
        for _ in range(3):  # CUDA graphs are recorded the second time, and played the third
            with (
                torch.autocast(
                    inputs[0].device.type, torch.bfloat16, enabled=precision != "32-true"
                ),
                torch.set_grad_enabled(net.training),
            ):
                loss = translated(*inputs).float().sum()
            if net.training:
                loss.backward()
            net.zero_grad()
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as error:  # of many kinds: the compiler may be missing, or the device too old for it
        reason = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        return None, " ".join(reason.split())[:120]
    finally:
        net.zero_grad()
    return translated, ""


def compile_network(
    model: Any, mode: str, B: int, precision: str, say: Callable[..., Any] = print
) -> bool:
    """Have `model` ask its network, for B images, as torch.compile translates it in this `mode`: in training, or in sampling, whichever
    it is ready for. Where it cannot be translated, say so and -> False; "off" changes nothing."""
    if mode == "off":
        return True
    say(
        "compiling the network: a minute or more, once; a signal is answered after it",
        file=sys.stderr,
        flush=True,
    )
    run, refusal = compiled(model.unet, mode, model.example(B), precision)
    if run:
        model.compiled[model.training] = run
    else:
        say(
            f"--compile {mode} does not work here ({refusal}): going on without",
            file=sys.stderr,
            flush=True,
        )
    return not refusal


def peak_memory(device: str, reset: bool = False) -> int:
    """The most bytes that were held since the last `reset`, on a GPU by torch, else by this process, all of it (where the system cannot
    forget: since the process began)."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is forgotten
        return int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )  # macOS counts bytes
