"""Kills, signals and full disks.

`assert_same_run` compares a run with an undisturbed one: every loss and a hash of all weights must
be equal, bit for bit.
"""

import contextlib
import os
import random
import shutil
import signal
import time

import pytest
from training_runs import (
    RUN,
    STEPS,
    Process,
    assert_same_run,
    checkpoints,
    fit_run,
    last_step,
    long_validation,
    losses,
    validation_losses,
    weights_hash,
)

import train
from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import newest_checkpoint
from training import run_directory


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_random_steps_again_and_again(start, tmp_path, undisturbed, times):
    seed = random.randrange(10**6)
    print("seed", seed)
    run_dir, dice, reached = tmp_path / "run", random.Random(seed), []
    for _ in range(times):
        goal = max(30, last_step(run_dir) + dice.randint(5, STEPS // 5))
        process = (
            start(run_dir).until(lambda goal=goal: last_step(run_dir) >= goal).kill(signal.SIGKILL)
        )
        assert process.ends() == -signal.SIGKILL
        reached.append(last_step(run_dir))
    assert len(set(reached)) == times
    last = start(run_dir)
    assert last.ends() == 0
    assert "resuming at step" in last.out
    assert_same_run(run_dir, undisturbed)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_with_tmpdir_elsewhere(start, tmp_path, tiny_data):
    """Saving a wide network takes a while; the run is killed as soon as the temporary file
    exists."""
    wide = ["--width", "64", "--max-steps", "12", "--save-every", "1", "--val-every", "100"]
    assert fit_run(tiny_data, tmp_path / "whole", *wide) == 0
    run_dir, elsewhere, caught = tmp_path / "run", f"/dev/shm/{tmp_path.name}", 0
    os.makedirs(elsewhere)
    try:
        for step in (2, 5, 8):

            def being_written(step=step):
                return any(
                    p.name >= f".step_{step:08d}"
                    for p in (run_dir / "checkpoints").glob(".step_*.ckpt")
                )

            start(run_dir, *wide, TMPDIR=elsewhere).until(being_written).kill(signal.SIGKILL).ends()
            caught += bool(list((run_dir / "checkpoints").glob(".step_*.ckpt")))
            for file in (run_dir / "checkpoints").glob("step_*.ckpt"):
                assert read_checkpoint_file(file)
        assert caught
        assert start(run_dir, *wide, TMPDIR=elsewhere).ends() == 0
        assert not os.listdir(elsewhere)  # nothing is staged there
    finally:
        shutil.rmtree(elsewhere)
    assert_same_run(run_dir, (losses(tmp_path / "whole"), weights_hash(tmp_path / "whole")))


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("SIGINT", 130),
        ("SIGTERM", 143),
        ("SIGUSR1", 75),
        ("SIGHUP", 129),
        pytest.param("SIGUSR2", 75, marks=pytest.mark.slow),
        pytest.param("SIGXCPU", 152, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_a_complete_checkpoint_and_a_clear_last_line(
    start, tmp_path, undisturbed, name, status
):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: last_step(run_dir) > 40).kill(signal.Signals[name])
    assert process.ends() == status
    assert process.out.splitlines()[-1].startswith(f"stopped by {name} at step ")
    assert "Traceback" not in process.err
    at = int(process.out.splitlines()[-1].split()[5])
    assert newest_checkpoint(run_dir).name == f"step_{at:08d}.ckpt"
    assert last_step(run_dir) == at
    assert load_model(run_dir)
    if name == "SIGTERM":
        assert start(run_dir).ends() == 0
        assert_same_run(run_dir, undisturbed)


def test_sigterm_in_a_job_exits_with_75(start, tmp_path):
    run_dir = tmp_path / "run"
    process = (
        start(run_dir, SLURM_JOB_ID="1").until(lambda: last_step(run_dir) > 5).kill(signal.SIGTERM)
    )
    assert process.ends() == 75


@pytest.mark.slow
def test_more_signals_do_not_spoil_the_save(start, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: last_step(run_dir) > 40)
    for number in [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT] * 10:
        with contextlib.suppress(ProcessLookupError):
            process.kill(number)
        time.sleep(0.002)
    status = process.ends()
    told = process.out.splitlines()[-1].split(" at step ")[
        0
    ]  # signals that arrive together may be handled in any order
    assert (told, status) in [
        ("stopped by SIGUSR1", 75),
        ("stopped by SIGTERM", 143),
        ("stopped by SIGINT", 130),
    ]
    assert "Traceback" not in process.err
    assert load_model(run_dir)
    assert start(run_dir).ends() == 0
    assert_same_run(run_dir, undisturbed)


def test_a_signal_during_validation(tiny_data, start, tmp_path, undisturbed):
    """It is cut short, and one more step is taken."""
    run_dir, long = tmp_path / "run", long_validation(tiny_data, tmp_path)
    process = start(run_dir, *long).until(lambda: checkpoints(run_dir)).kill(signal.SIGTERM)
    assert process.ends() == 143
    assert "step 30: validation loss cut short" in process.err
    assert "stopped by SIGTERM at step 31" in process.out
    assert (
        "30,," not in (run_dir / "metrics.csv").read_text()
    )  # half a validation is not written down
    assert not list((run_dir / "samples").glob("step_*"))
    assert start(run_dir, *long, "--val-every", "2000", "--val-images", "16").ends() == 0
    assert_same_run(run_dir, undisturbed)


def test_a_signal_in_the_last_validation_is_not_lost(tiny_data, start, tmp_path):
    """The remaining time of a job may be too short for sampling: the exit status requeues the
    job."""
    long = long_validation(tiny_data, tmp_path)
    process = (
        start(tmp_path / "run", *long, "--max-steps", 30)
        .until(lambda: checkpoints(tmp_path / "run"))
        .kill(signal.SIGUSR1)
    )
    assert process.ends() == 75
    assert "trained, at step 30" in process.out.splitlines()[-1]
    assert "SIGUSR1 arrived during the last validation" in process.out.splitlines()[-1]
    assert not validation_losses(tmp_path / "run")
    for said in ("trained, at step 30", "is already trained"):  # the validation is made up for
        again = start(tmp_path / "run", *long, "--max-steps", 30)
        assert again.ends() == 0
        assert said in again.out
        assert len(validation_losses(tmp_path / "run")) == 1


def test_a_second_process_in_the_same_folder_is_refused(start, tmp_path, tiny_data, refused):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: last_step(run_dir) > 5)
    assert "another process is training in" in refused(
        train.main, "--dataset", tiny_data, "--run-dir", run_dir, *RUN
    )
    process.kill(signal.SIGTERM).ends()


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(
    start, tiny_data, tmp_path, undisturbed, small_disk
):
    disk = small_disk("size=6m")
    run_dir = disk / "run"
    process = Process(tmp_path, "--dataset", tiny_data, "--run-dir", run_dir, *RUN).until(
        lambda: checkpoints(run_dir)
    )
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 1024)
    assert process.ends(30) == 1
    assert "Traceback" not in process.err
    assert process.err.splitlines()[-1].startswith("train.py: cannot write to ")
    assert "No space left on device" in process.err.splitlines()[-1]
    assert f"the last checkpoint is {newest_checkpoint(run_dir)}" in process.err
    assert load_model(run_dir)
    (disk / "filler").unlink()
    assert Process(tmp_path, "--dataset", tiny_data, "--run-dir", run_dir, *RUN).ends() == 0
    assert_same_run(run_dir, undisturbed)


def test_a_folder_that_cannot_be_written_to_is_reported_before_the_first_step(
    refused, tiny_data, small_disk
):
    disk = small_disk("ro,size=1m")
    assert "cannot use" in refused(
        train.main, "--dataset", tiny_data, "--run-dir", disk / "run", *RUN
    )


def test_a_checkpoint_that_cannot_be_read_is_named(refused, tiny_data, tmp_path, monkeypatch):
    """The message does not advise another --run-dir, which would abandon the run."""

    def fails(*_):
        raise PermissionError(13, "Permission denied", "x.ckpt")

    monkeypatch.setattr(run_directory, "find_resume_checkpoint", fails)
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *RUN]
    line = refused(train.main, *words)
    assert "cannot use the checkpoint x.ckpt (Permission denied)" in line
    assert "--run-dir" not in line
