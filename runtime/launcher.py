"""Start a script's work: device, precision, processes, errors and exit status.

    machine = launch("train.py", device="auto", precision="auto", devices=2)
    model = machine.prepare(load)   # on the first process, then on the others; exits on bad input
    ...
    except OUT_OF_MEMORY:        # of the device and, for work in `memory_errors()`, of the host
        return machine.fail("out of memory: choose a smaller --batch-size")

Bad input is reported in one line on standard error, and the exit status is 2. Only the first
process prints the line; but if srun or torchrun started the processes and `launch` itself raises
the error, every process prints it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy  # noqa: F401 (before torch: a signal is lost while torch imports it)
import torch

from runtime.cores import share_cores
from runtime.devices import Precision, pick_device, pick_precision, set_tf32
from runtime.processes import Processes, Refused, launch_processes, own_exit_status

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)  # of the device, of the host

Result = TypeVar("Result")


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError instead of torch's RuntimeError when the host is out of memory.

    torch has no type of its own for this error: https://github.com/pytorch/pytorch/pull/20618 (seen
    in 2.14.1).
    """
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError("the host has not enough memory") from error
        raise


@dataclass(frozen=True)
class Machine:
    """The hardware and processes of a script. Only device and rank differ between processes."""

    prog: str  # name of the script, for error messages
    device: torch.device  # of this process
    precision: Precision
    processes: Processes

    @property
    def is_first(self) -> bool:
        return self.processes.is_first

    def prepare(self, make: Callable[[], Result]) -> Result:
        """Call `make` on the first process, then on the others, and return each one's result.

        If one of them raises ValueError or OSError, all exit, and the first prints the message.
        """
        return self.prepare_shared(lambda _: (make(), None))

    def prepare_shared(
        self, make: Callable[[Any], tuple[Result, Any]], shared: Any = None
    ) -> Result:
        """Do the same as `prepare`, but pass a value from the first process to the others.

        See `Processes.first_then_others`.
        """
        try:
            return self.processes.first_then_others(make, shared)
        except Refused as refusal:
            self.processes.leave()
            sys.exit(self.fail(str(refusal), by_all=True))

    def fail(self, message: str, by_all: bool = False) -> int:
        """Print one line and return exit status 2.

        If this process alone fails while others wait for it, it exits at once. If all fail with the
        same message (`by_all`), only the first process prints it.
        """
        if self.is_first or not by_all:
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        return own_exit_status(2) if by_all else self.processes.abort(2)


def launch(
    prog: str,
    device: str = "auto",
    precision: str = "auto",
    devices: int | None = None,
    num_nodes: int | None = None,
) -> Machine:
    """Choose device and precision and launch the processes, or exit with an error."""
    try:
        device_type = pick_device(device)
        local_precision = pick_precision(device_type, precision)
        processes = launch_processes(device_type, devices, num_nodes)
    except ValueError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(2)
    if device_type == "cpu":
        share_cores()
    chosen: Precision = processes.broadcast(local_precision)
    set_tf32(chosen == "tf32")
    return Machine(prog, processes.device, chosen, processes)
