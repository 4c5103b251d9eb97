"""Signals as requests to stop, and the exit status after each.

    stop = Stop().arm()     # before slow imports: a signal now ends the program at once
    stop.deferred = True    # a signal now only sets `stop.signal`, which a loop checks

A request to stop is
- SIGINT: Ctrl-C;
- SIGTERM: `kill`, a shutdown, and SLURM at a job's end;
- SIGHUP: the terminal was closed; ignored under `nohup`;
- SIGXCPU: the soft limit of CPU time (`ulimit -St`) is reached;
- SIGUSR1 and SIGUSR2: a batch system warns of its time limit.

Other signals have their usual effects. Ctrl-\\ (SIGQUIT) and `kill -9` end a program at once; the
next run resumes from its newest checkpoint. Python ignores SIGPIPE and SIGXFSZ, so the write fails
instead: see `output`.

Nothing slow is imported here.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

TIME_LIMIT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # of a time limit
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, *TIME_LIMIT_SIGNALS)

# EX_TEMPFAIL of sysexits.h: stopped cleanly, run it again. run.sh requeues its job on this status.
EXIT_RUN_AGAIN = 75


def exit_status(number: int) -> int:
    """Return the exit status after a signal.

    It is `EXIT_RUN_AGAIN` in a SLURM job and for `TIME_LIMIT_SIGNALS`, otherwise 128 + `number` as
    in shells.
    """
    if "SLURM_JOB_ID" in os.environ or number in TIME_LIMIT_SIGNALS:
        return EXIT_RUN_AGAIN
    return 128 + number


class Stop:
    """A request to stop: `signal` is the first signal received, or None.

    While `deferred` is false, the first signal raises SystemExit with its exit status, so that
    incomplete files are removed; a second signal does not interrupt this. While `deferred` is true,
    a signal is only recorded. A training loop sets `deferred` before its first step.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.deferred = False
        self.previous_handlers: dict[signal.Signals, Any] = {}

    def arm(self, brief: bool = False) -> "Stop":
        """Handle signals from now on.

        A `brief` program ignores `TIME_LIMIT_SIGNALS`: it ends before the time limit.
        """
        for name in SIGNALS:
            if name == signal.SIGHUP and signal.getsignal(name) == signal.SIG_IGN:
                continue
            is_ignored = brief and name in TIME_LIMIT_SIGNALS
            previous = signal.signal(name, signal.SIG_IGN if is_ignored else self.handle)
            self.previous_handlers.setdefault(name, previous)
        return self

    def disarm(self) -> None:
        """Restore the previous handlers."""
        for name, handler in self.previous_handlers.items():
            signal.signal(name, handler)
        self.previous_handlers = {}

    def ignore(self) -> None:
        """Ignore signals until Python has exited.

        At exit, Python would replace our handler by the default one, which ends the process.
        """
        for name in SIGNALS:
            signal.signal(name, signal.SIG_IGN)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record a signal and, unless it is deferred, report it and exit."""
        self.signal = self.signal or signal.Signals(number)
        if self.deferred:
            return
        self.deferred = True
        rank = os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))
        if rank == "0":  # one process reports it
            script = os.path.basename(sys.argv[0])
            with contextlib.suppress(OSError):  # the terminal may be closed
                # print is not reentrant
                os.write(2, f"\n{script}: stopped by {self.signal.name}\n".encode())
        raise SystemExit(exit_status(number))
