"""Faults: most end with the result of an undisturbed run, or with a one-line error.

Other faults are tested elsewhere:

    signals to a run, full disk under a checkpoint    tests/training/test_checkpointing.py
    a second process in a run directory               tests/training/test_checkpointing.py
    truncated, empty, foreign, hostile checkpoints    tests/checkpoints/test_distrust.py
    closed pipe, full disk under standard output      tests/runtime/test_output.py
    a job's time limit, requeueing                    tests/training/test_slurm.py
    corrupt images and .npz files                     tests/image_data/
    losses and gradients that are not finite          tests/training/test_divergence.py
    kill -9 at random moments                         tests/test_strain.py
    full and read-only disks, names, links, NaN       tests/test_full_disks.py
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from training_runs import (
    Process,
    checkpoints,
    contents,
    fit,
    fit_run,
    last_step,
    losses,
    weights_hash,
)

import Inference
import train
from checkpoints import checkpoint_file
from checkpoints.run_dir import newest_checkpoint

pytestmark = pytest.mark.slow

SHORT = [*TINY, *"--max-steps 12 --save-every 5".split()]
SAMPLE = "--device cpu --num 4 --steps 5".split()

# The code that `run` starts: scripts one after another, until one of them fails.
AS_SCRIPTS = f"""
import runpy
sys.path.insert(0, {str(ROOT)!r})
words = sys.argv[1:]
while words:
    count = words.index("AND") if "AND" in words else len(words)
    sys.argv, words = words[:count], words[count + 1:]
    try:
        runpy.run_path({str(ROOT)!r} + "/" + sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
CLOCK_SET_BACK = """
import time
now, calls = time.time(), [0]
def backwards():
    calls[0] += 1
    return now - 3600 * calls[0]
time.time = backwards
"""
FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
ENVIRONMENTS = {
    "ASCII locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "python -O": {"PYTHONOPTIMIZE": "1"},
    "hash seed": {"PYTHONHASHSEED": "7"},
    "TERM=dumb": {"TERM": "dumb"},
    "a terminal of one column": {"COLUMNS": "1", "LINES": "1"},
    "no HOME": {"before": "os.environ.pop('HOME', None)"},
    "HOME does not exist": {"HOME": "/nonexistent"},
    "umask 077": {"before": "os.umask(0o77)"},
    "another time zone": {"TZ": "Pacific/Kiritimati"},
    "clock set back": {"before": CLOCK_SET_BACK},
    "40 file handles": {"before": FEW_FILES},
    "no standard input": {"before": "os.close(0)"},
    "no temporary folder": {"TMPDIR": "/nonexistent"},
    "full temporary folder": {"TMPDIR": "FULL"},
}
AT_THE_START = ("ASCII locale", "python -O", "hash seed")  # read when Python starts


def run(folder, script, *words, before="", fresh=False, **environment) -> Process:
    """Start a script in `folder` after the code in `before`; "AND" separates several scripts."""
    code = f"import os, sys\n{before}\n{AS_SCRIPTS}"
    return Process(folder, "-c", code, script, *words, script="", fresh=fresh, **environment)


def refusal(process: Process, script: str, status: int = 2) -> str:
    """The error message of a process: the last line, and the only one with "error: "."""
    assert process.ends() == status, process.err
    assert "Traceback" not in process.err
    assert process.err.count("error: ") == 1
    line = process.err.splitlines()[-1]
    assert line.startswith(f"{script}: error: ")
    return line


def pixels_hash(file) -> str:
    return hashlib.sha256(np.load(file)["arr_0"].tobytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """Losses, hash of the weights and hash of the samples of an undisturbed run of `SHORT`."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(tiny_data, folder / "run", "--max-steps", 12, "--save-every", 5) == 0
    words = ["--ckpt", str(folder / "run"), "--out", str(folder / "images"), *SAMPLE]
    assert Inference.main(words) == 0
    hashes = weights_hash(folder / "run"), pixels_hash(folder / "images" / "samples.npz")
    return losses(folder / "run"), *hashes


@pytest.mark.parametrize("fault", ENVIRONMENTS)
def test_the_result_is_the_same_in_unusual_environments(
    tiny_data, tmp_path, whole, small_disk, fault
):
    environment = {**ENVIRONMENTS[fault]}
    if environment.get("TMPDIR") == "FULL":
        environment["TMPDIR"] = str(full := small_disk("size=4k"))
        (full / "filler").write_bytes(b"x" * 4096)
    folder = tmp_path / "é ü 図" / fault
    environment["fresh"] = fault in AT_THE_START
    words = ["--dataset", tiny_data, "--run-dir", folder / "run", *SHORT]
    sampling = ["Inference.py", "--ckpt", folder / "run", "--out", folder / "images", *SAMPLE]
    process = run(tmp_path, "train.py", *words, "AND", *sampling, **environment)
    assert process.ends() == 0, process.err
    assert "Traceback" not in process.err
    assert (losses(folder / "run"), weights_hash(folder / "run")) == whole[:2]
    assert pixels_hash(folder / "images" / "samples.npz") == whole[2]
    if fault == "umask 077":
        file = newest_checkpoint(folder / "run")
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_closed_pipe(tiny_data, tmp_path, whole):
    words = ["train.py", "--dataset", tiny_data, "--run-dir", tmp_path / "run", *SHORT]
    command = " ".join(f"'{word}'" for word in [sys.executable, ROOT / words[0], *words[1:]])
    line = f"{command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert (losses(tmp_path / "run"), weights_hash(tmp_path / "run")) == whole[:2]


def test_stopped_and_continued(start, tmp_path, undisturbed):
    process = start(tmp_path / "run").until(lambda: last_step(tmp_path / "run") > 10)
    process.kill(signal.SIGSTOP)
    state = Path(f"/proc/{process.popen.pid}/stat")
    process.until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
    process.kill(signal.SIGCONT)
    assert process.ends() == 0
    assert (losses(tmp_path / "run"), weights_hash(tmp_path / "run")) == undisturbed


def test_resumed_on_another_number_of_threads(tiny_data, tmp_path):
    """Sums may be rounded differently."""
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *SHORT]
    for threads, last in (("1", 5), ("2", 12)):
        more = ["--max-steps", last]
        process = run(tmp_path, "train.py", *words, *more, fresh=True, OMP_NUM_THREADS=threads)
        assert process.ends() == 0
    assert fit(tiny_data, tmp_path / "whole", "--max-steps", 12) == 0
    parts, expected = contents(tmp_path / "run"), contents(tmp_path / "whole")
    for name, weight in expected["state_dict"].items():
        assert torch.allclose(weight, parts["state_dict"][name], atol=1e-4)


def test_the_home_folder_in_a_path(tiny_data, tmp_path, monkeypatch):
    """A shell leaves the ~ in --run-dir=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train.main(["--dataset", str(tiny_data), "--run-dir=~/run", *SHORT]) == 0
    words = ["--ckpt", "~/run", "--out=~/images", *SAMPLE]
    assert Inference.main(words) == 0
    assert sorted(os.listdir(tmp_path)) == ["images", "run"]


def test_the_dataset_is_deleted_while_it_trains(tiny_data, tmp_path, undisturbed, start):
    data = shutil.copy(tiny_data, tmp_path / "tiny.npz")
    run_dir = tmp_path / "run"
    process = start(run_dir, "--dataset", data).until(lambda: last_step(run_dir) > 5)
    data.unlink()
    assert process.ends() == 0
    assert (losses(run_dir), weights_hash(run_dir)) == undisturbed
    again = start(run_dir, "--dataset", data, "--max-steps", 200)
    assert str(data) in refusal(again, "train.py")


def test_the_run_directory_is_deleted_while_it_trains(start, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: last_step(run_dir) > 30)
    run_dir.rename(tmp_path / "gone")  # so that nothing is added while it is deleted
    shutil.rmtree(tmp_path / "gone")
    assert process.ends() == 1
    assert "Traceback" not in process.err
    assert process.err.splitlines()[-1].startswith(f"train.py: cannot write to {run_dir}")
    assert not list(run_dir.rglob("*.ckpt"))
    shutil.rmtree(run_dir, ignore_errors=True)
    assert start(run_dir).ends() == 0
    assert (losses(run_dir), weights_hash(run_dir)) == undisturbed


def test_two_processes_begin_at_once_in_one_folder(start, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    both = [start(run_dir), start(run_dir)]
    by_status = {process.ends(): process for process in both}
    assert sorted(by_status) == [0, 2]
    assert "another process is training in" in by_status[2].err
    assert (losses(run_dir), weights_hash(run_dir)) == undisturbed


@pytest.mark.parametrize("by", ["another run's", "nothing", "half of it", "an empty file"])
def test_a_checkpoint_is_replaced_while_it_is_read(
    tiny_data, tiny_run, tmp_path, monkeypatch, refused, by
):
    """After its checksum is verified, and before its contents are read."""
    run_dir = tmp_path / "run"
    assert fit_run(tiny_data, run_dir, "--max-steps", 30, "--save-every", 10) == 0
    newest, check = newest_checkpoint(run_dir), checkpoint_file.check_sha256
    data = newest.read_bytes()

    def then_replace(file):
        check(file)
        if file == newest:
            new = tmp_path / "new"
            new.write_bytes({"half of it": data[: len(data) // 2]}.get(by, b""))
            if by == "another run's":
                shutil.copy(newest_checkpoint(tiny_run), new)
            new.replace(file)
            if by == "nothing":
                file.unlink()

    monkeypatch.setattr(checkpoint_file, "check_sha256", then_replace)
    words = ["--ckpt", str(run_dir), "--out", str(tmp_path / "images"), *SAMPLE]
    assert Inference.main(words) == 0
    assert len(np.load(tmp_path / "images" / "samples.npz")["arr_0"]) == 4


# ---- memory --------------------------------------------------------------------------------------

LITTLE_MEMORY = """
import resource, torch
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 400 * 2**20,) * 2)
"""


@pytest.mark.parametrize("script", ["Inference.py", "train.py"])
def test_too_little_memory(tiny_run, tmp_path, script):
    sampling = "--num 90000 --batch-size 90000 --device cpu".split()
    words = {
        "Inference.py": ["--ckpt", tiny_run, "--out", tmp_path / "x", *sampling],
        "train.py": ["--run-dir", tmp_path / "x", *SHORT, "--batch-size", 20_000],
    }[script]
    process = run(tmp_path, script, *words, before=LITTLE_MEMORY)
    line = refusal(process, script)
    assert "out of memory" in line
    assert "--batch-size" in line
    assert not list(tmp_path.rglob("samples.npz"))
    assert not checkpoints(tmp_path / "x")
