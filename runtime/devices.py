"""The hardware of a run: device, precision, torch.compile, peak memory."""

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
    """Return "cuda", "mps" or "cpu": the device `name`, or the first available one for "auto".

    Raises ValueError where `name` is not available.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return available[0]
    if name not in available:
        raise ValueError(f"--device {name}: this machine has none; use {' or '.join(available)}")
    return name


def pick_precision(device: str, name: str) -> Precision:
    """Return Lightning's name of a precision.

    "auto" is bf16 autocast where `device` has fast bf16 arithmetic, and float32 elsewhere.
    """
    is_bf16 = has_fast_bf16(device) if name == "auto" else name == "bf16"
    return "bf16-mixed" if is_bf16 else "32-true"


def has_fast_bf16(device: str) -> bool:
    """Return whether the hardware computes in bf16 instead of emulating it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", read_cpuinfo()))


def read_cpuinfo() -> str:
    """Return what Linux knows of the processors, and "" on other systems."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def hardware(device: str) -> str:
    """Return the names of processor and GPU, and the number of cores that this process may use.

    For example "NVIDIA H100; AMD EPYC 7763, 2 cores".
    """
    # x86 has a model name; other processors are named by their architecture
    match = re.search(r"^model name\s*:\s*(.+)$", read_cpuinfo(), re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    processor = f"{name}, {cores} core{'s' if cores > 1 else ''}"
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
    """Return the most bytes in use since the last `reset`: by torch on a GPU, else by this process.

    Where the system cannot reset the peak, it is that since the process began.
    """
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
