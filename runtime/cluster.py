"""The processes that srun or torchrun started, read from environment variables."""

import os

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment


def detect_external_launcher() -> tuple[ClusterEnvironment, int, int] | None:
    """Return the environment, processes per node and nodes if torchrun, or srun with several tasks,
    started this process, else None.

    Raises ValueError, in one line, if the tasks cannot be spread evenly over the nodes.
    """
    if TorchElasticEnvironment.detect():  # first, because srun may have started torchrun
        processes_per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        return TorchElasticEnvironment(), processes_per_node, int(os.environ["GROUP_WORLD_SIZE"])
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if tasks == 1 or "SLURM_PROCID" not in os.environ:
        return None
    if tasks % nodes:
        raise ValueError(
            f"{tasks} tasks do not spread evenly over {nodes} nodes: give --ntasks-per-node"
        )
    # Lightning reads this variable, which srun -n2 does not set:
    # https://github.com/Lightning-AI/pytorch-lightning/issues/20391 (seen in 2.6.6)
    os.environ["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)
    # run.sh requeues the job; Lightning must not
    return SLURMEnvironment(auto_requeue=False), tasks // nodes, nodes


def cluster_environment() -> ClusterEnvironment:
    """Return the environment that gives Lightning rank and world size.

    Lightning's own detection is never used.
    """
    external = detect_external_launcher()
    return external[0] if external else LightningEnvironment()


def resolve_layout(device: str, devices: int | None, nodes: int | None) -> tuple[int, int]:
    """Return processes per node and nodes. Raises ValueError if they are not available."""
    external = detect_external_launcher()
    if external:
        _, started, started_nodes = external
        if (devices or started) != started or (nodes or started_nodes) != started_nodes:
            raise ValueError(
                f"{started} tasks per node were started on {started_nodes} nodes: leave out "
                "--devices and --num-nodes, or give these numbers"
            )
        devices, nodes = started, started_nodes
    devices, nodes = devices or 1, nodes or 1
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"{devices} processes need as many GPUs, and this machine has "
            f"{torch.cuda.device_count()}: give fewer --devices, or in a SLURM job request one GPU "
            "for each task of a node with --gres=gpu:N"
        )
    if device == "mps" and devices > 1:
        raise ValueError(f"--devices {devices}: there is one mps device")
    return devices, nodes
