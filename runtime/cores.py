"""Sharing the cores of a machine with other programs.

    share_cores()       # once, after torch is imported; does nothing if torch has one thread

OpenMP's threads spin while they wait for each other, which is fastest on idle cores. But if other
programs are busy, a spinning thread may occupy the core that is needed by the thread it waits for:
training then ran at a third of its speed. A background thread therefore measures the load every
half second (every two seconds while spinning is limited), and limits spinning while there are fewer
free cores than threads.

The method: GNU's OpenMP, which torch uses on Linux, spins far less while it manages more threads
than there are cores (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). Idle thread
teams raise the number of threads above the number of cores. Results do not change.

Only the cores that this process may use are counted: a job or a container may be limited to a few.
Without /proc/stat nothing is done.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

STAT = Path("/proc/stat")
FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # of each core
INTERVAL = 2.0  # seconds between measurements while spinning is limited; else a quarter of it
SPARE = 0.25  # spinning is limited if more cores than this are missing
# If one of these is set, nothing is changed.
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PARALLEL = 1 << 20  # elements of a tensor that torch computes with several threads


def usable_cores() -> set[int]:
    """The numbers of the cores that this process may use, or of all cores if that is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class CpuTimes:
    """Seconds: wall-clock time, CPU time of all programs on the usable cores, and our CPU time."""

    clock: float
    busy: float
    own: float


def cpu_times() -> CpuTimes:
    """Read the times. Raises OSError or ValueError if there is no usable /proc/stat."""
    mine = {f"cpu{number}" for number in usable_cores()}
    ticks = 0
    for line in STAT.read_text().splitlines():
        core, *fields = line.split()
        if core in mine:
            times = dict(zip(FIELDS, map(int, fields[: len(FIELDS)]), strict=True))
            ticks += sum(times.values()) - times["idle"] - times["iowait"]
    own = os.times()
    return CpuTimes(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system)


def cores_of_others(before: CpuTimes, after: CpuTimes) -> float:
    """The number of cores that other programs used between two readings."""
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / max(1e-6, after.clock - before.clock))


def cores_used_by_others(seconds: float = 0.3) -> float:
    """The number of cores that other programs use now, or 0 if it is unknown."""
    try:
        before = cpu_times()
        time.sleep(seconds)
        return cores_of_others(before, cpu_times())
    except (OSError, ValueError):
        return 0.0


class IdleTeams:
    """Idle teams of OpenMP threads, whose existence makes the working team spin less."""

    def __init__(self, count: int):
        self.count = count
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    @property
    def are_running(self) -> bool:
        return bool(self.threads)

    def start(self) -> None:
        self.stop.clear()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(self.count)]
        for thread in self.threads:
            thread.start()

    def run(self) -> None:
        torch.ones(PARALLEL).add_(1)  # the team exists from here on, until this thread ends
        self.stop.wait()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.threads = []


def teams_needed(threads: int, cores: int) -> int:
    """The number of idle teams that makes more threads than cores. Each adds `threads` - 1."""
    return max(1, (cores - threads) // (threads - 1) + 1)


def watch(teams: IdleTeams, threads: int, cores: int) -> None:
    """Measure the load forever, and keep the idle teams running while cores are missing."""
    before = cpu_times()
    while True:
        time.sleep(INTERVAL if teams.are_running else INTERVAL / 4)
        after = cpu_times()
        is_crowded = cores - cores_of_others(before, after) < threads - SPARE
        if is_crowded and not teams.are_running:
            teams.start()
        elif teams.are_running and not is_crowded:
            teams.end()
        before = after


_watcher: threading.Thread | None = None


def share_cores() -> None:
    """Start to measure the load, once in a process."""
    global _watcher
    threads = torch.get_num_threads()
    if _watcher or threads == 1:
        return
    if any(name in os.environ for name in SET_BY_USER):
        return
    try:
        cpu_times()
        cores = len(usable_cores())
    except (OSError, ValueError):
        return
    teams = IdleTeams(teams_needed(threads, cores))
    _watcher = threading.Thread(target=watch, args=(teams, threads, cores), daemon=True)
    _watcher.start()
