"""What holds on an NVIDIA GPU, and the rehearsal of benchmarks/gpu.py, which needs none.

DDPM_TEST_DEVICE=cuda bash run.sh test -m gpu
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from training_runs import contents, fit

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["precision", "batch-size", "resume"])
def test_correctness(part, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu_checks.py", part, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert results
    assert all(result["passed"] for result in results)


@pytest.mark.gpu
def test_the_chosen_settings_train_on_a_gpu(tiny_data, tmp_path):
    flags = "--device cuda --precision auto --compile auto --max-steps 3".split()
    assert fit(tiny_data, tmp_path, *flags) == 0
    assert contents(tmp_path)["global_step"] == 3


def test_without_a_gpu_it_asks_for_a_rehearsal(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU is available: add --rehearse" in refused(gpu.main, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written_to(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(gpu.main, "--rehearse", "--out", tmp_path / "file" / "x")
    assert "cannot write to" in line
    assert "choose another --out" in line


@pytest.fixture
def part(monkeypatch, tmp_path):
    """A function that runs gpu.py with one part, whose script is this text; returns the results."""

    def run(text: str, *flags: str) -> tuple[int, list[dict]]:
        script = tmp_path / "script.py"
        script.write_text(text)
        monkeypatch.setattr(gpu, "PARTS", (gpu.Part(str(script), "one", 5),))
        status = gpu.main(["--rehearse", "--out", str(tmp_path / "out"), *flags])
        lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
        return status, [json.loads(line) for line in lines][1:]

    return run


def test_results_before_a_failure_are_kept(part):
    text = "import json; print(json.dumps({'speed': 3})); raise SystemExit('broken')"
    status, results = part(text)
    assert status == 1
    assert results[0] == {"part": "one", "speed": 3}
    assert results[1]["status"] == "failed"


def is_running(process_id: int) -> bool:
    """Whether this process exists and has not ended."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_part_is_stopped_at_its_time_limit_with_its_children(part, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "REHEARSAL_LIMIT", 3)
    text = f"""
import os, time
child = os.fork()
if child:
    with open({str(tmp_path / "child")!r}, "w") as file:
        file.write(str(child))
time.sleep(600)
"""
    status, results = part(text)
    assert status == 1
    assert results[0]["status"] == "stopped"
    assert not is_running(int((tmp_path / "child").read_text()))


def test_a_part_is_skipped_if_the_one_that_it_needs_failed(monkeypatch, tmp_path):
    (tmp_path / "fails.py").write_text("raise SystemExit(1)")
    parts = (
        gpu.Part(str(tmp_path / "fails.py"), "train", 5),
        gpu.Part(str(tmp_path / "fails.py"), "samples", 5, needs="train"),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--rehearse", "--out", str(tmp_path / "out")]) == 1
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"part": "samples", "skipped": "it needs the part train"}


def test_a_part_that_does_not_fit_into_the_minutes_left_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "find_device", lambda rehearse: "a GPU")
    assert gpu.main(["--minutes", "0", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()[1:]
    assert len(lines) == len(gpu.PARTS)
    assert all("skipped" in json.loads(line) for line in lines)


@pytest.mark.slow
def test_the_rehearsal(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--rehearse", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    statuses = {one["part"]: one["status"] for one in results if "status" in one}
    assert done.returncode == 0, done.stdout
    assert set(statuses) == {part.name for part in gpu.PARTS if part.rehearsed}
    assert set(statuses.values()) == {"done"}
    assert {"relative_error", "levels", "frechet", "images_per_second"} <= {
        name for one in results for name in one
    }
