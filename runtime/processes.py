"""The processes that share the work of a run: started here, by srun or by torchrun; how they agree, fail and end.

processes = launch("cpu", devices=2)                        # starts the second one, or finds those of srun or torchrun
processes.global_rank, processes.world_size, processes.broadcast(x), processes.barrier()
"""

import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

PARENT = "DDPM_STARTED_BY"  # environment variable: the process that started the others
PATIENCE = timedelta(hours=2)  # the others wait while the first one downloads and decodes the data


def started_elsewhere() -> tuple[ClusterEnvironment, int, int] | None:
    """What srun or torchrun started: where it is described, processes a node, nodes; None where there is one process."""
    if TorchElasticEnvironment.detect():  # first, for torchrun may itself have been started by srun
        return (
            TorchElasticEnvironment(),
            int(os.environ["LOCAL_WORLD_SIZE"]),
            int(os.environ["GROUP_WORLD_SIZE"]),
        )
    tasks, nodes = (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)),
        int(os.environ.get("SLURM_STEP_NUM_NODES", 1)),
    )
    if tasks > 1 and "SLURM_PROCID" in os.environ:
        if tasks % nodes:
            raise ValueError(
                f"{tasks} tasks do not spread evenly over {nodes} nodes: give --ntasks-per-node"
            )
        os.environ["SLURM_NTASKS_PER_NODE"] = str(
            tasks // nodes
        )  # srun -n2 leaves it out, and Lightning asks for it
        return (
            SLURMEnvironment(auto_requeue=False),
            tasks // nodes,
            nodes,
        )  # run.sh puts a job back into the queue
    return None


def environment() -> ClusterEnvironment:
    """Where Lightning is to read this process's place from; never the one it would guess."""
    elsewhere = started_elsewhere()
    return elsewhere[0] if elsewhere else LightningEnvironment()


def launch(device: str, devices: int | None = None, nodes: int | None = None) -> Fabric:
    """The processes that share the work, each with a device of its own, `devices` a node: as many as srun or torchrun
    started, else this one, which starts the others by running its command again. They talk over NCCL on GPUs, gloo on CPUs.

    Raises ValueError where what is asked for is not what was started, or is not there.
    """
    quiet()
    elsewhere = started_elsewhere()
    if elsewhere and (
        (devices or elsewhere[1]) != elsewhere[1] or (nodes or elsewhere[2]) != elsewhere[2]
    ):
        raise ValueError(
            f"--devices {devices} and --num-nodes {nodes} are not the {elsewhere[1]} tasks on each of {elsewhere[2]} "
            "nodes that were started: leave them out"
        )
    devices, nodes = elsewhere[1:] if elsewhere else (devices or 1, nodes or 1)
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"{devices} processes on this machine, and it has {torch.cuda.device_count()} GPUs for them: "
            "give fewer --devices, or in a job as many GPUs as tasks a node, with --gres=gpu:N"
        )
    if device == "mps" and devices > 1:
        raise ValueError(f"--devices {devices}: there is one mps device")
    if devices * nodes == 1:
        return Fabric(accelerator=device, devices=1, plugins=[LightningEnvironment()])
    if elsewhere is None and PARENT in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        if not started_here():
            os._exit(1)  # who started this one is gone already
        threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    elif elsewhere is None:
        os.environ[PARENT] = str(os.getpid())
    strategy = DDPStrategy(timeout=PATIENCE)
    processes = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        plugins=[environment()],
    )
    processes.launch()
    return processes


def gather(processes: Fabric, mine: Any) -> list[Any]:
    """What each process has, in their order, for the first process; an empty list for the others."""
    if processes.world_size == 1:
        return [mine]
    parts = [None] * processes.world_size if processes.global_rank == 0 else None
    try:
        group: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        torch.distributed.gather_object(mine, parts, group=group)
    except RuntimeError as error:
        alone(processes, error)
    return parts or []


def alone(processes: Fabric, error: RuntimeError) -> None:
    """Where `error` is that of a collective in which another process did not answer, say so and end; else raise it."""
    if not is_loss(error):
        raise error
    print(
        f"{os.path.basename(sys.argv[0])}: another process is gone: run the same command again",
        file=sys.stderr,
    )
    desert(processes, 1)


def in_turn(
    processes: Fabric, make: Callable[[Any], tuple[Any, Any]], told: Any = None
) -> tuple[Any, str]:
    """What make(told) gives in each process, of the first alone at first: what it tells in its second value is what the others are
    told. Where it raises ValueError or OSError in any, all get None and its message."""
    first, made, refusal = processes.global_rank == 0, None, ""
    for mine in (first, not first):
        if mine and not refusal:
            try:
                made, told = make(told)
            except (OSError, ValueError) as error:
                refusal = str(error)
        refusal, told = processes.broadcast(
            (next(filter(None, gather(processes, refusal)), ""), told)
        )
    return (None, refusal) if refusal else (made, "")


def part(processes: Fabric) -> None:
    """The processes wait for each other and let go: one that ends earlier would take the others' connections with it."""
    if processes.world_size > 1:
        try:
            processes.barrier()
            torch.distributed.destroy_process_group()
        except RuntimeError as error:
            alone(processes, error)


def desert(processes: Fabric, status: int) -> int:
    """For a process that has failed alone: where others wait for it, it ends here, at once; else -> `status`. Those that
    talk over gloo notice by themselves, those over NCCL are ended by srun, torchrun or the one that started them."""
    if processes.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def is_loss(error: BaseException) -> bool:
    """Whether `error` is that of a collective in which another process did not answer."""
    return isinstance(error, RuntimeError) and bool(
        re.search("gloo|nccl|connection|peer", str(error), re.IGNORECASE)
    )


def started_here() -> bool:
    """Whether `launch` in another process has started this one."""
    return os.environ.get(PARENT) == str(os.getppid())


def own_status(status: int) -> int:
    """The exit status of this process where all end in good order: 0 where another has started it, which reports the status
    and which Lightning would kill if this one ended with anything else."""
    return 0 if started_here() else status


def follow(parent: int) -> None:
    """End this process when the one that started it is gone: a collective that waits for it would wait for many minutes."""
    while os.getppid() == parent:
        time.sleep(1)
    os.write(
        2,
        f"{os.path.basename(sys.argv[0])}: the first process is gone: run the same command again\n".encode(),
    )
    os._exit(1)


def quiet() -> None:
    """Silence Lightning's hints about things that are meant here, and the traceback of TensorBoard's thread where it cannot
    write: Run says that once."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    threading.excepthook = lambda args: (
        None if issubclass(args.exc_type, OSError) else threading.__excepthook__(args)
    )
