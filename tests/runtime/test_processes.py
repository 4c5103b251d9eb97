"""Several processes compute the same as one, and end together."""

import os
import signal
import time

import pytest
from conftest import ROOT
from training_runs import (
    RUN,
    Process,
    assert_same_run,
    checkpoints,
    fit_run,
    last_step,
    long_validation,
    losses,
    runs,
    validation_losses,
    weights_hash,
)

BY_TWO = ["--devices", 2, "--max-steps", 80]


@pytest.fixture(scope="module")
def undisturbed_two(start, tmp_path_factory):
    """Losses and hash of the weights of a run by two processes that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    process = start(run_dir, *BY_TWO)
    assert process.ends() == 0, process.err
    assert process.out.count("trained, at step") == 1  # only one of the two prints
    return losses(run_dir), weights_hash(run_dir)


def nearly_equal(one, other, tolerance=1e-6):
    differences = [abs(float(one[step]) - float(other[step])) for step in one.keys() | other.keys()]
    return max(differences) <= tolerance


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_train_what_one_does(start, tiny_data, tmp_path, parts):
    """Without dropout, whose masks differ from process to process.

    Losses are compared, not weights: where the gradient is 0 (a bias before a normalization), Adam
    turns rounding errors of 1e-7 into steps of size lr.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--dropout", 0, "--max-steps", 60]
    assert fit_run(tiny_data, one, *options) == 0
    assert start(two, *options, "--devices", 2, "--accumulate", parts).ends() == 0
    assert nearly_equal(losses(one), losses(two))
    assert validation_losses(one) == pytest.approx(validation_losses(two), abs=2e-6)
    assert len(validation_losses(one)) == 1


@pytest.mark.slow
def test_fewer_validation_batches_than_processes(start, tiny_data, tmp_path):
    options = ["--max-steps", 12, "--val-every", 6, "--val-images", 8, "--dropout", 0]
    process = start(tmp_path / "two", *options, "--devices", 2)
    assert process.ends() == 0, process.err
    assert fit_run(tiny_data, tmp_path / "one", *options) == 0
    one, two = (validation_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 2
    assert one == pytest.approx(two, abs=2e-6)


@pytest.mark.slow
def test_torchrun_starts_them_too(tmp_path, tiny_data):
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        ROOT / "train.py",
    ]
    process = Process(
        tmp_path,
        *launcher,
        "--dataset",
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        *RUN,
        "--max-steps",
        20,
        script="",
    )
    assert process.ends() == 0, process.err
    assert "2 x cpu" in process.out
    assert len(losses(tmp_path / "run")) == 20


@pytest.mark.slow
def test_a_signal_to_the_other_process_during_validation(tiny_data, start, tmp_path):
    long = long_validation(tiny_data, tmp_path)
    process = start(tmp_path / "run", *long, "--devices", 2).until(
        lambda: checkpoints(tmp_path / "run")
    )
    os.kill(process.children()[0], signal.SIGTERM)
    assert process.ends(10) == 143
    assert "step 30: validation loss cut short" in process.err
    assert "stopped by SIGTERM at step 31" in process.out


@pytest.mark.slow
def test_two_processes_resumed_as_one(start, tiny_data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert fit_run(tiny_data, one, "--dropout", 0, "--max-steps", 60) == 0
    assert start(two, "--dropout", 0, "--max-steps", 30, "--devices", 2).ends() == 0
    assert fit_run(tiny_data, two, "--dropout", 0, "--max-steps", 60) == 0
    assert nearly_equal(losses(one), losses(two))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "other", "all"])
def test_sigterm_to_one_of_two_or_to_both(start, tmp_path, undisturbed_two, victim):
    run_dir = tmp_path / "run"
    process = start(run_dir, *BY_TWO).until(lambda: last_step(run_dir) > 30)
    children = process.children()
    assert len(children) == 1
    if victim == "other":
        os.kill(children[0], signal.SIGTERM)
    else:
        process.kill(signal.SIGTERM, whole_group=victim == "all")
    assert process.ends(10) == 143
    assert "stopped by SIGTERM at step" in process.out.splitlines()[-1]
    assert "Traceback" not in process.err
    if victim == "all":
        assert start(run_dir, *BY_TWO).ends() == 0
        assert_same_run(run_dir, undisturbed_two)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "other"])
def test_one_of_two_is_killed(start, tmp_path, undisturbed_two, victim):
    run_dir = tmp_path / "run"
    process = start(run_dir, *BY_TWO).until(
        lambda: checkpoints(run_dir) and last_step(run_dir) > 30
    )
    children = process.children()
    os.kill(children[0] if victim == "other" else process.popen.pid, signal.SIGKILL)
    assert process.popen.wait(20) in (
        (1, -signal.SIGKILL) if victim == "other" else (-signal.SIGKILL,)
    )  # 1, or -9 if Lightning kills it first
    deadline = time.monotonic() + 20
    while runs(children[0]):
        assert time.monotonic() < deadline, "the other process still waits"
        time.sleep(0.1)
    process.ends()
    assert (
        "process of this run is gone" in process.err or "the first process is gone" in process.err
    )
    assert "Traceback" not in process.err
    assert start(run_dir, *BY_TWO).ends() == 0
    assert_same_run(run_dir, undisturbed_two)


def test_two_processes_sample_the_same_images(tiny_run, tmp_path):
    for devices in (1, 2):
        process = Process(
            tmp_path,
            "--ckpt",
            tiny_run,
            "--out",
            tmp_path / str(devices),
            "--num",
            "21",
            "--batch-size",
            "4",
            "--devices",
            devices,
            "--device",
            "cpu",
            script="Inference.py",
        )
        assert process.ends() == 0, process.err
    assert {p.name: p.read_bytes() for p in (tmp_path / "1").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "2").iterdir()
    }


def test_a_batch_that_cannot_be_shared_is_refused_once(start, tmp_path):
    process = start(tmp_path / "run", "--batch-size", 9, "--devices", 2)
    assert process.ends() == 2
    assert process.err.count("batch size 9 cannot be shared by 2 processes") == 1
    assert "Traceback" not in process.err


GATHER = """
import torch
from runtime.processes import launch_processes

opened = []
new_group = torch.distributed.new_group
torch.distributed.new_group = lambda *a, **k: opened.append(1) or new_group(*a, **k)
processes = launch_processes("cpu", 2)
found = [processes.gather((i, processes.global_rank)) for i in range(3)]
processes.print(found, len(opened))
processes.leave()
"""


def test_values_are_gathered_over_one_connection(tmp_path):
    (tmp_path / "gather.py").write_text(GATHER)
    process = Process(tmp_path, tmp_path / "gather.py", script="", fresh=True, PYTHONPATH=str(ROOT))
    assert process.ends() == 0, process.err
    assert process.out.split("\n")[-2] == "[[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(2, 0), (2, 1)]] 1"
