"""run.sh as a SLURM job, on a real SLURM of two nodes on this machine: sbatch, srun, requeue,
preemption, arrays, scancel.

It needs a script that starts one, ../shared/slurm_local.sh, and root; without them the tests are
skipped and say so.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, copy_project
from training_runs import last_step, losses, weights_hash

import train

pytestmark = pytest.mark.slow
LOCAL = ROOT.parent / "shared" / "slurm_local.sh"
RUN = [*TINY, "--seed", "0", "--val-every", "500", "--save-every", "100", "--max-steps"]


@pytest.fixture(scope="module")
def slurm():
    """The environment variables for sbatch and the other SLURM commands."""
    if not LOCAL.is_file() or os.geteuid() != 0:
        pytest.skip(f"no {LOCAL}, or not root: there is no SLURM here")
    folder = f"/tmp/slurm_of_tests_{os.getpid()}"
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "OMP_NUM"))
    } | {
        "SLURM_LOCAL_DIR": folder,
        "NODES": "2",
        "CPUS_PER_NODE": "2",
        "SLURM_PORT_BASE": "17817",
        "PYTHON": sys.executable,
    }
    with Path(tempfile.gettempdir(), "slurm_of_tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clusters cannot run at once
        up = subprocess.run(["bash", LOCAL, "up"], env=environment, capture_output=True, text=True)
        try:
            assert up.returncode == 0, up.stderr
            yield environment | {"SLURM_CONF": f"{folder}/slurm.conf"}
        finally:
            down = ["bash", LOCAL, "purge"]
            subprocess.run(down, env=environment, capture_output=True, check=False)


@pytest.fixture
def project(tmp_path, tiny_data, slurm):
    """A copy of this project, from which jobs are submitted, and in which their run directories
    are."""
    copy_project(tmp_path)
    shutil.copy(tiny_data, tmp_path)
    return Project(tmp_path, slurm)


class Project:
    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment

    def command(self, *argv):
        done = subprocess.run(
            [*map(str, argv)], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *options, steps):
        """Submit a job and return its number."""
        return self.command(
            "sbatch",
            "--parsable",
            "--gres=none",
            "--cpus-per-task=1",
            *options,
            "run.sh",
            "tiny.npz",
            *RUN,
            steps,
        )

    def log(self, job):
        """The output of a job. The log of a task of an array is named after another id than `job`,
        so the text of the logs is searched."""
        said = [file.read_text() for file in self.folder.glob("*.log")]
        return "".join(
            text
            for text in said
            if f"training on {self.folder}/tiny.npz: runs/tiny-{job} ==" in text
        )

    def until(self, condition, seconds=240):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "\n".join(
                file.read_text() for file in self.folder.glob("*.log")
            )
            time.sleep(0.05)

    def until_done(self):
        self.until(lambda: not self.command("squeue", "-h"))

    def run_dir(self, job):
        return self.folder / "runs" / f"tiny-{job}"

    def processes(self, job):
        """The ids of the processes that train for this job."""
        found = subprocess.run(
            ["pgrep", "-f", rf"^{sys.executable} train\.py.*tiny-{job}$"],
            capture_output=True,
            text=True,
        )
        return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Train with one thread here, like the jobs of one core with which the runs are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tiny_data, tmp_path_factory):
    """A function that returns the losses and the hash of the weights of an uninterrupted run of
    one process."""
    found = {}

    def of(count):
        if count not in found:
            run_dir = tmp_path_factory.mktemp("undisturbed")
            assert (
                train.main(
                    ["--dataset", str(tiny_data), "--run-dir", str(run_dir), *RUN, str(count)]
                )
                == 0
            )
            found[count] = losses(run_dir), weights_hash(run_dir)
        return found[count]

    return of


@pytest.fixture(scope="module")
def steps_in_40_seconds(tiny_data, tmp_path_factory):
    """The number of steps that one process takes in 40 seconds on this machine."""
    run_dir = tmp_path_factory.mktemp("speed")
    train.main(["--dataset", str(tiny_data), "--run-dir", str(run_dir), *RUN, "50"])
    began = time.monotonic()
    train.main(["--dataset", str(tiny_data), "--run-dir", str(run_dir), *RUN, "250"])
    return int(40 * 200 / (time.monotonic() - began))


def assert_finished(project, job, whole):
    assert f"== done: everything is in runs/tiny-{job} ==" in project.log(job)
    assert (project.run_dir(job) / "denoise.gif").is_file()
    assert "Traceback" not in project.log(job)
    assert (losses(project.run_dir(job)), weights_hash(project.run_dir(job))) == whole


def test_the_time_limit_requeues(project, undisturbed):
    """SLURM checks the time limits every 30 s, so the signal arrives 30 to 60 s after the job
    began. The job is then training, because its steps would take hours. Afterwards the limit is
    raised, and the job is cancelled when it has resumed."""
    job = project.submit("--time=2", "--signal=USR1@60", steps=100_000)
    project.until(lambda: f"job {job} is requeued, time 1 of 8 ==" in project.log(job))
    project.command("scontrol", "update", f"jobid={job}", "timelimit=30")
    stopped = last_step(project.run_dir(job))
    project.until(lambda: last_step(project.run_dir(job)) > stopped + 100)
    project.command("scancel", job)
    project.until_done()
    assert project.log(job).count("stopped by SIGUSR1 at step") == 1
    assert f"resuming at step {stopped} of" in project.log(job)
    found = losses(project.run_dir(job))
    assert len(found) > stopped + 100
    assert found == undisturbed(len(found))[0]


def test_preemption(project, undisturbed, steps_in_40_seconds):
    job = project.submit("--nodelist=n1", steps=steps_in_40_seconds)
    project.until(lambda: last_step(project.run_dir(job)) > 50)
    project.command(
        "sbatch", "--partition=high", "--nodelist=n1", "--cpus-per-task=2", "--wrap=sleep 1"
    )
    project.until_done()
    assert project.log(job).count("stopped by SIG") == 1
    assert "resuming at step" in project.log(job)
    assert_finished(project, job, undisturbed(steps_in_40_seconds))


def test_one_of_two_tasks_of_one_job_of_an_array_is_killed(project):
    array = project.submit("--array=1-2", "--ntasks-per-node=2", steps=300)
    killed, other = f"{array}_2", f"{array}_1"
    project.until(
        lambda: last_step(project.run_dir(killed)) > 120 and len(project.processes(killed)) == 2
    )
    os.kill(project.processes(killed)[-1], signal.SIGKILL)
    project.until_done()
    assert f"== stopped with status 137: job {killed} is requeued" in project.log(killed)
    assert "is requeued" not in project.log(other)
    assert "2 x cpu" in project.log(other)
    whole = losses(project.run_dir(other)), weights_hash(project.run_dir(other))
    assert_finished(project, other, whole)
    assert_finished(project, killed, whole)


def test_two_nodes_and_sigterm_to_one_task(project, undisturbed):
    """In a job with the name "bash", Lightning would not detect SLURM."""
    job = project.submit("--nodes=2", "--ntasks-per-node=1", "--job-name=bash", steps=200)
    project.until(lambda: last_step(project.run_dir(job)) > 30 and len(project.processes(job)) == 2)
    os.kill(project.processes(job)[-1], signal.SIGTERM)
    project.until_done()
    assert "2 x cpu" in project.log(job)
    assert project.log(job).count("stopped by SIGTERM at step") == 1
    assert project.log(job).count("resuming at step") == 1
    found, expected = losses(project.run_dir(job)), undisturbed(200)[0]
    assert_finished(project, job, (found, weights_hash(project.run_dir(job))))
    assert max(abs(float(found[step]) - float(expected[step])) for step in range(1, 121)) <= 1e-6


def test_a_cancelled_job_does_not_come_back(project):
    job = project.submit(steps=100_000)
    project.until(lambda: last_step(project.run_dir(job)) > 20)
    project.command("scancel", job)
    project.until_done()
    assert "is requeued" not in project.log(job)
    assert list((project.run_dir(job) / "checkpoints").glob("*.ckpt"))
