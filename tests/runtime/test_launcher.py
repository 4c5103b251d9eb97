"""How a script starts its work and ends it: processes, bad input, exit statuses.

Runs of two processes are tested in tests/runtime/test_processes.py and with each script.
"""

import os

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from runtime import launcher, processes
from runtime.cluster import cluster_environment, resolve_layout
from runtime.launcher import launch, memory_errors
from runtime.processes import Refused, own_exit_status


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_", "GROUP_", "LOCAL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def machine():
    return launch("train.py", device="cpu", precision="bf16")


def test_a_single_process(machine):
    assert machine.is_first
    assert machine.device == torch.device("cpu")
    assert machine.precision == "bf16"
    assert (machine.processes.global_rank, machine.processes.world_size) == (0, 1)
    assert machine.processes.num_nodes == 1
    assert machine.processes.broadcast("x") == "x"
    assert machine.processes.gather("x") == ["x"]
    assert machine.processes.abort(3) == 3
    machine.processes.leave()


def test_what_cannot_be_launched_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        launch("train.py", device="mps" if torch.cuda.is_available() else "cuda")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: --device ")
    assert error.count("\n") == 1


@pytest.fixture
def torch_defaults():
    """torch's default settings of TF32: on in convolutions, off in matrix products."""

    def restore():
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False

    restore()
    yield
    restore()


@pytest.mark.parametrize("precision", ["32", "tf32", "bf16"])
def test_tf32_is_used_only_if_it_is_asked_for(torch_defaults, monkeypatch, precision):
    monkeypatch.setattr(launcher, "pick_precision", lambda device, name: name)
    launch("train.py", device="cpu", precision=precision)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


def test_prepare_returns_the_result(machine):
    assert machine.prepare(lambda: 1) == 1
    assert machine.prepare_shared(lambda shared: (shared + 1, None), 1) == 2


@pytest.mark.parametrize("error", [ValueError("bad input"), OSError("bad input")])
def test_bad_input_is_one_line_and_status_2(machine, capsys, error):
    def make(_):
        raise error

    with pytest.raises(SystemExit) as ended:
        machine.prepare_shared(make)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "train.py: error: bad input\n"
    with pytest.raises(Refused) as refused:
        machine.processes.first_then_others(make)
    assert refused.value.by_all


def test_a_failure_is_one_line_and_status_2(machine, capsys):
    assert machine.fail("out of memory") == 2
    assert machine.fail("all fail", by_all=True) == 2
    lines = ["train.py: error: out of memory", "train.py: error: all fail"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_child_process_leaves_the_exit_status_to_its_parent(monkeypatch):
    monkeypatch.delenv(processes.PARENT_VARIABLE, raising=False)
    assert own_exit_status(75) == 75
    monkeypatch.setenv(processes.PARENT_VARIABLE, str(os.getppid()))
    assert own_exit_status(75) == 0


def test_an_error_other_than_a_lost_process_is_raised(machine):
    with pytest.raises(RuntimeError, match="shapes differ"):
        machine.processes.abort_on_lost_process(RuntimeError("shapes differ"))


def test_a_lost_process_is_reported(machine, capsys):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(SystemExit) as ended:
        machine.processes.abort_on_lost_process(lost)
    assert ended.value.code == 1
    assert "another process is gone: run the same command again" in capsys.readouterr().err


def srun(tasks: int, nodes: int) -> dict[str, str]:
    tasks_and_nodes = {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes)}
    return {**tasks_and_nodes, "SLURM_PROCID": "0", "SLURM_NTASKS": str(tasks)}


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_WORLD_SIZE": "3",
    "GROUP_WORLD_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environment", "arguments", "layout", "cluster"),
    [
        ({}, (None, None), (1, 1), LightningEnvironment),
        ({}, (2, None), (2, 1), LightningEnvironment),
        (srun(1, 1), (None, None), (1, 1), LightningEnvironment),
        (srun(4, 2), (None, None), (2, 2), SLURMEnvironment),
        (srun(4, 2), (2, 2), (2, 2), SLURMEnvironment),
        (TORCHRUN, (None, None), (3, 2), TorchElasticEnvironment),
        (srun(4, 2) | TORCHRUN, (None, None), (3, 2), TorchElasticEnvironment),
    ],
)
def test_layout_is_that_of_srun_or_torchrun(monkeypatch, environment, arguments, layout, cluster):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")  # restored after the test
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_layout("cpu", *arguments) == layout
    assert type(cluster_environment()) is cluster


@pytest.mark.parametrize(
    ("environment", "device", "arguments", "message"),
    [
        (srun(3, 2), "cpu", (None, None), "3 tasks do not spread evenly over 2 nodes"),
        (srun(4, 2), "cpu", (4, None), "2 tasks per node were started on 2 nodes"),
        (TORCHRUN, "cpu", (3, 1), "3 tasks per node were started on 2 nodes"),
        ({}, "cuda", (99, None), "99 processes need as many GPUs, and this machine has"),
        ({}, "mps", (2, None), "--devices 2: there is one mps device"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(monkeypatch, environment, device, arguments, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        resolve_layout(device, *arguments)


def test_memory_that_the_host_lacks_is_a_memory_error():
    with pytest.raises(MemoryError), memory_errors():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="of another kind"), memory_errors():
        raise RuntimeError("of another kind")
