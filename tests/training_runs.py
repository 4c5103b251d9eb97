"""Training runs that several tests share: in this process, and as a user starts them."""

import contextlib
import csv
import functools
import hashlib
import os
import signal
import subprocess
import sys
import time

import fork_server
import numpy as np
import torch
from conftest import ROOT, TINY

import train
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import newest_checkpoint
from training.preview import Preview

# Previews would be the most expensive part of the runs in this process.
Preview.__init__ = functools.partialmethod(Preview.__init__, count=8, steps=4)

STEPS = 100


# OMP_NUM_THREADS at the start of this process; a test of several processes changes it.
THREADS = {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}


RUN = [
    *TINY,
    *f"--T 10 --dropout 0.2 --flip --val-every 1000 --save-every 25 --max-steps {STEPS}".split(),
]


@functools.cache
def server() -> fork_server.Server:
    return fork_server.Server()


class Process:
    """train.py (or another script) as a user starts it, in a process group of its own.

    What it prints is in `out` and `err`. It is forked from a process that has already imported
    torch, unless it is `fresh`, to test what happens before that.
    """

    def __init__(self, folder, *argv, script="train.py", fresh=False, **environment):
        folder.mkdir(exist_ok=True, parents=True)
        self.files = [folder / f"said_{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "OMP_NUM"))
        }
        environment = clean | THREADS | environment
        command = [*([str(ROOT / script)] if script else []), *map(str, argv)]
        if not fresh and command[0] != "-m" and sys.platform == "linux":
            self.popen = server().start(command, folder, environment, *self.files)
            return
        with open(self.files[0], "w") as out, open(self.files[1], "w") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env=environment,
            )

    @property
    def out(self):
        return self.files[0].read_text()

    @property
    def err(self):
        return self.files[1].read_text()

    def until(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            status, late = self.popen.poll(), time.monotonic() > deadline
            if late:
                self.kill(signal.SIGKILL, whole_group=True)
            assert status is None, f"it ended with {status}:\n{self.out}\n{self.err}"
            assert not late, f"waited in vain:\n{self.out}\n{self.err}"
            time.sleep(0.002)
        return self

    def kill(self, number, whole_group=False):
        (os.killpg if whole_group else os.kill)(self.popen.pid, number)
        return self

    def ends(self, seconds=180):
        try:
            return self.popen.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def children(self):
        """The processes that it has started and that still run."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.popen.pid)], capture_output=True, text=True
        ).stdout.split()
        return [int(pid) for pid in found]


def runs(pid):
    """Whether the process runs: a zombie does not."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def losses(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = [
            (int(row["step"]), row["train_loss"])
            for row in csv.DictReader(file)
            if row["train_loss"]
        ]
    logged = [step for step, _ in rows]
    assert logged == sorted(set(logged))  # each step once, in order
    return dict(rows)


def validation_losses(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


def weights_hash(run_dir):
    found = read_checkpoint_file(newest_checkpoint(run_dir))
    digest = hashlib.sha256(repr((found["global_step"], found["ema"]["n"])).encode())
    for part in (found["state_dict"], found["ema"]["weights"]):
        for name in sorted(part):
            digest.update(part[name].numpy().tobytes())
    return digest.hexdigest()


def last_step(run_dir):
    """The last step in metrics.csv, 0 if there is none."""
    with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
        return int((run_dir / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
    return 0


def fit(data, run_dir, *extra) -> int:
    return train.main(["--dataset", str(data), "--run-dir", str(run_dir), *TINY, *map(str, extra)])


def contents(run_dir) -> dict:
    file = newest_checkpoint(run_dir)
    assert file is not None
    return torch.load(file, weights_only=True)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit_run(data, run_dir, *extra) -> int:
    """Train with the settings of `RUN`."""
    return train.main(["--dataset", str(data), "--run-dir", str(run_dir), *RUN, *map(str, extra)])


def checkpoints(run_dir) -> list[str]:
    """The names of the checkpoints in a run directory, oldest first."""
    return sorted(file.name for file in (run_dir / "checkpoints").glob("step_*.ckpt"))


def assert_same_run(run_dir, expected) -> None:
    """Check that losses and weights equal another run's and no temporary file is left."""
    assert (losses(run_dir), weights_hash(run_dir)) == expected
    assert not list(run_dir.rglob(".*.tmp.*"))


def long_validation(data, folder) -> list:
    """Arguments for a run that saves step 30, then validates on 10,000 images for a while."""
    with np.load(data) as archive:
        arrays = dict(archive)
    arrays["test_images"] = np.resize(arrays["test_images"], (10_000, 8, 8, 3))
    arrays["test_labels"] = np.zeros(10_000, np.int64)
    np.savez(folder / "tiny.npz", **arrays)
    flags = "--val-every 30 --val-images 10000 --save-every 30".split()
    return ["--dataset", folder / "tiny.npz", *flags]
