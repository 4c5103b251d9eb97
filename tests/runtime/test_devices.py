"""The choice of device and precision."""

import mmap
from pathlib import Path

import pytest
import torch

from runtime import devices


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "name", "expected"),
    [
        (False, False, "auto", "cpu"),
        (False, True, "auto", "mps"),
        (True, True, "auto", "cuda"),
        (True, False, "cpu", "cpu"),
        (True, False, "mps", "--device mps: this machine has none; use cuda or cpu"),
        (False, False, "cuda", "--device cuda: this machine has none; use cpu"),
    ],
)
def test_auto_is_the_first_device_and_a_missing_one_is_refused(
    monkeypatch, has_cuda, has_mps, name, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    if " " in expected:
        with pytest.raises(ValueError, match=expected):
            devices.pick_device(name)
    else:
        assert devices.pick_device(name) == expected


@pytest.mark.parametrize(
    ("processor", "expected"),
    [("fma avx512f avx512_bf16 amx_tile", "bf16"), ("fma avx2", "32")],
)
def test_precision_auto_is_bf16_where_the_processor_has_it(monkeypatch, processor, expected):
    monkeypatch.setattr(devices, "read_cpuinfo", lambda: processor)
    assert devices.pick_precision("cpu", "auto") == expected
    assert devices.pick_precision("cpu", "32") == "32"
    assert devices.pick_precision("cpu", "bf16") == "bf16"
    assert devices.pick_precision("mps", "auto") == "32"


def test_tf32_is_for_cuda():
    assert devices.pick_precision("cuda", "tf32") == "tf32"
    with pytest.raises(ValueError, match="tf32 is for NVIDIA GPUs, not cpu: use 32 or bf16"):
        devices.pick_precision("cpu", "tf32")


def test_hardware_has_the_name_of_the_processor_and_its_cores(monkeypatch):
    monkeypatch.setattr(devices, "read_cpuinfo", lambda: "flags: x\nmodel name\t: Fast One\n")
    monkeypatch.setattr(devices, "usable_cores", lambda: {0, 1})
    assert devices.hardware("cpu") == "Fast One, 2 cores"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset it")
def test_peak_memory_is_that_since_the_last_reset():
    before = devices.peak_memory("cpu", reset=True)
    with mmap.mmap(-1, 2**26) as block:  # 64 MiB that no earlier test has used and freed
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert devices.peak_memory("cpu") > before + 2**25
    assert devices.peak_memory("cpu", reset=True) < before + 2**25


def test_tf32_is_restored_after_a_block():
    before = torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        with devices.tf32(allowed):
            assert torch.backends.cudnn.allow_tf32 == allowed
    assert torch.backends.cudnn.allow_tf32 == before
