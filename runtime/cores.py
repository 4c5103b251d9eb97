"""Sharing the cores of a machine with other programs.

    share_cores()       # once, after torch is imported; does nothing where there is nothing to do

OpenMP's threads spin while they wait for each other. On idle cores that is fastest. Beside other
busy programs it is the opposite: a thread that spins takes the core away from the one it waits for,
and training was measured to fall to a third. So a thread looks at the load of the machine every two
seconds, and lets OpenMP spin only while there are cores for all its threads.

How: GNU's OpenMP, which torch has on Linux, spins far less while it manages more threads than there
are cores (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). The
threads of a second team, which do nothing else, make them more. No result changes.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

STAT = Path("/proc/stat")
INTERVAL = 2.0  # seconds between two looks
SPARE = 0.25  # cores that may be missing before threads stop spinning
# An environment that says how threads wait is obeyed.
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PARALLEL = 1 << 20  # elements of a tensor that torch computes with several threads


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since some moment: on the clock, of all busy cores, and of this process."""

    clock: float
    busy: float
    own: float


def cpu_times() -> CpuTimes:
    """Read the times. Raises OSError or ValueError where there is no /proc/stat."""
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
        int, STAT.read_text().split("\n", 1)[0].split()[1:]
    )
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return CpuTimes(time.monotonic(), busy, own.user + own.system)


def cores_of_others(before: CpuTimes, after: CpuTimes) -> float:
    """How many cores other programs used between two moments."""
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / max(1e-6, after.clock - before.clock))


def cores_in_use(seconds: float = 0.3) -> float:
    """How many cores other programs use now; 0 where that is not known."""
    try:
        before = cpu_times()
        time.sleep(seconds)
        return cores_of_others(before, cpu_times())
    except (OSError, ValueError):
        return 0.0


class SecondTeam:
    """A team of OpenMP's threads that does nothing, and lets the first one spin less."""

    def __init__(self) -> None:
        self.leave = threading.Event()
        self.thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        return self.thread is not None

    def start(self) -> None:
        self.leave.clear()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        torch.ones(PARALLEL).add_(1)  # the team exists from here on, until this thread ends
        self.leave.wait()

    def end(self) -> None:
        assert self.thread
        self.leave.set()
        self.thread.join()
        self.thread = None


def watch(team: SecondTeam, threads: int) -> None:
    """Look at the load every `INTERVAL` seconds, for ever."""
    cores = os.cpu_count() or 1
    before = cpu_times()
    while True:
        time.sleep(INTERVAL if team.is_there else INTERVAL / 4)
        after = cpu_times()
        is_crowded = cores - cores_of_others(before, after) < threads - SPARE
        if is_crowded and not team.is_there:
            team.start()
        elif team.is_there and not is_crowded:
            team.end()
        before = after


_watcher: threading.Thread | None = None


def share_cores() -> None:
    """Begin to watch the load, once in a process."""
    global _watcher
    threads = torch.get_num_threads()
    if _watcher or threads == 1:
        return
    if any(name in os.environ for name in SET_BY_USER):
        return
    try:
        cpu_times()
    except (OSError, ValueError):
        return
    _watcher = threading.Thread(target=watch, args=(SecondTeam(), threads), daemon=True)
    _watcher.start()
