"""The processes that share the work of a run: started here, by srun or by torchrun.

    processes = launch_processes("cpu", devices=2)   # starts the second one
    losses = processes.gather(loss)                  # on the first process: one from each process
    processes.leave()                                # before a process ends

Rank 0 is the first process. It alone downloads data and prints results.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from runtime.cluster import cluster_environment, detect_external_launcher, resolve_layout

PARENT_VARIABLE = "DDPM_STARTED_BY"  # environment variable with the id of the parent process
TIMEOUT = timedelta(hours=2)  # the other processes wait while the first downloads the data

T = TypeVar("T")
Result = TypeVar("Result")


class Refused(ValueError):
    """Bad input, in one line. `by_all`: whether every process raises it."""

    def __init__(self, message: str, by_all: bool = False):
        super().__init__(message)
        self.by_all = by_all


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them. A single process never waits."""

    fabric: Fabric

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def global_rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        return self.fabric.world_size

    @property
    def num_nodes(self) -> int:
        return getattr(self.fabric.strategy, "num_nodes", 1)

    @property
    def is_first(self) -> bool:
        return self.global_rank == 0

    def print(self, *values: object, **options: Any) -> None:
        """Print on the first process only."""
        if self.is_first:
            print(*values, **options)

    def broadcast(self, value: T) -> T:
        """Return the first process's `value` on every process."""
        try:
            return self.fabric.broadcast(value)
        except RuntimeError as error:
            self.abort_on_lost_process(error)

    @functools.cached_property
    def gloo_group(self) -> Any:
        """A connection for any values: NCCL only moves tensors on GPUs. Every process must open it
        at the same time."""
        return torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)

    def gather(self, value: T) -> list[T]:
        """Return every process's `value` on the first process, and an empty list on the others."""
        if self.world_size == 1:
            return [value]
        gathered: Any = [None] * self.world_size if self.is_first else None
        try:
            torch.distributed.gather_object(value, gathered, group=self.gloo_group)
        except RuntimeError as error:
            self.abort_on_lost_process(error)
        return gathered or []

    def first_then_others(
        self, make: Callable[[Any], tuple[Result, Any]], shared: Any = None
    ) -> Result:
        """Call `make(shared)` on the first process, then on all others at once.

        `make` returns its result and the value that the other processes get as `shared`. If it
        raises ValueError or OSError on any process, all raise Refused with that message.
        """
        result: Any = None
        refusal = ""
        for is_turn in (self.is_first, not self.is_first):
            if is_turn and not refusal:
                try:
                    result, shared = make(shared)
                except (OSError, ValueError) as error:
                    refusal = str(error)
            first_refusal = next(filter(None, self.gather(refusal)), "")
            refusal, shared = self.broadcast((first_refusal, shared))
        if refusal:
            raise Refused(refusal, by_all=True)
        return result

    def leave(self) -> None:
        """Wait for all processes, then disconnect. Exiting earlier would break connections."""
        if self.world_size > 1:
            try:
                self.fabric.barrier()
                torch.distributed.destroy_process_group()
            except RuntimeError as error:
                self.abort_on_lost_process(error)

    def abort(self, status: int) -> int:
        """Exit at once if there are other processes; otherwise return `status`.

        With gloo, the other processes detect the loss. With NCCL, srun, torchrun or the parent
        process ends them.
        """
        if self.world_size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    def abort_on_lost_process(self, error: RuntimeError) -> NoReturn:
        """Report that another process is gone and abort; raise any other `error` again."""
        if not is_lost_process(error):
            raise error
        message = "another process is gone: run the same command again"
        print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
        sys.exit(self.abort(1))


def is_lost_process(error: BaseException) -> bool:
    """Return whether a collective operation failed because another process did not respond."""
    pattern = "gloo|nccl|connection|peer"
    return isinstance(error, RuntimeError) and bool(re.search(pattern, str(error), re.IGNORECASE))


def launch_processes(
    device: str, devices: int | None = None, nodes: int | None = None
) -> Processes:
    """Join the processes that srun or torchrun started, or start `devices` of them on this node.

    The first process starts the others by running its own command again. Each has a device of its
    own; they communicate over NCCL on GPUs and over gloo on CPUs. Raises ValueError if `devices`
    and `nodes` differ from what srun or torchrun started, or are not available.
    """
    silence_lightning()
    devices, nodes = resolve_layout(device, devices, nodes)
    if devices * nodes == 1:
        return Processes(Fabric(accelerator=device, devices=1, plugins=[LightningEnvironment()]))
    if detect_external_launcher() is None:
        watch_or_register_parent()
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(timeout=TIMEOUT),
        plugins=[cluster_environment()],
    )
    fabric.launch()
    return Processes(fabric)


def watch_or_register_parent() -> None:
    """In a child process, exit when the parent does; otherwise mark this one as the parent."""
    is_child = PARENT_VARIABLE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
    if not is_child:
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        return
    if not was_launched_here():
        os._exit(1)  # the parent is gone already
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()


def was_launched_here() -> bool:
    """Return whether `launch_processes` in another process started this one."""
    return os.environ.get(PARENT_VARIABLE) == str(os.getppid())


def own_exit_status(status: int) -> int:
    """Return the exit status of this process when all processes exit normally with `status`.

    It is 0 in a child process: the parent reports the status, and Lightning would kill the parent
    if a child exited with anything else.
    """
    return 0 if was_launched_here() else status


def exit_with_parent(parent: int) -> None:
    """Exit when `parent` is gone: a collective operation would wait for it for many minutes."""
    while os.getppid() == parent:
        time.sleep(1)
    message = "the first process is gone: run the same command again"
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, f"{os.path.basename(sys.argv[0])}: {message}\n".encode())
    os._exit(1)


def silence_lightning() -> None:
    """Silence Lightning's hints, and tracebacks of threads that cannot write.

    The hints are about deliberate choices. If the disk is full, TensorBoard's thread fails too, but
    the training already reports it.
    """
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")

    def print_traceback(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            threading.__excepthook__(args)

    threading.excepthook = print_traceback
