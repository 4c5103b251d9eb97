"""The hardware of a run: device, precision, names, peak memory."""

import contextlib
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from runtime.cores import usable_cores

Precision = Literal["32", "tf32", "bf16"]


def pick_device(name: str) -> str:
    """Return "cuda", "mps" or "cpu": the device `name`, or the first available one for "auto".

    Raises ValueError if `name` is not available.
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
    """Return the precision of this name, or the one that "auto" stands for on this device.

    "32" is float32, "tf32" is float32 whose matrix products and convolutions round their inputs to
    TF32, "bf16" is bf16 autocast. "auto" is bf16 if `device` has fast bf16 arithmetic, otherwise
    float32. Raises ValueError for TF32 on devices other than "cuda".
    """
    if name == "tf32":
        if device != "cuda":
            raise ValueError(f"--precision tf32 is for NVIDIA GPUs, not {device}: use 32 or bf16")
        return "tf32"
    is_bf16 = has_fast_bf16(device) if name == "auto" else name == "bf16"
    return "bf16" if is_bf16 else "32"


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in matrix products and convolutions on CUDA, for the whole process.

    torch allows it in convolutions unless it is told not to:
    https://docs.pytorch.org/docs/stable/notes/cuda.html (seen in 2.14.1).
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside a block."""
    before = torch.backends.cudnn.allow_tf32
    set_tf32(allowed)
    try:
        yield
    finally:
        set_tf32(before)


def has_fast_bf16(device: str) -> bool:
    """Return whether the hardware computes in bf16 instead of emulating it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", read_cpuinfo()))


def read_cpuinfo() -> str:
    """Return Linux's description of the processors, or "" on other systems."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def hardware(device: str) -> str:
    """Return the names of GPU and processor, and the number of cores that this process may use.

    For example "NVIDIA H100; AMD EPYC 7763, 2 cores".
    """
    # x86 has a model name; other processors are named by their architecture
    match = re.search(r"^model name\s*:\s*(.+)$", read_cpuinfo(), re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    cores = len(usable_cores())
    processor = f"{name}, {cores} core{'s' if cores > 1 else ''}"
    return f"{torch.cuda.get_device_name()}; {processor}" if device == "cuda" else processor


def peak_memory(device: str, reset: bool = False) -> int:
    """Return the peak memory in bytes since the last `reset`: torch's on a GPU, else the process's.

    If the system cannot reset the peak, it counts from the start of the process.
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
