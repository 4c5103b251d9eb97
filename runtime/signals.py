"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1 as one request to stop, and the exit status that answers it.

    stop = Stop().arm()                # before anything slow is imported: from now on a signal ends the program at once
    stop.waits = True                  # from now on it only sets `stop.signal`, for a loop that looks at it, and saves

Nothing slow is imported here.
"""

import os
import signal
import sys
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN = 75  # EX_TEMPFAIL of sysexits.h: stopped in good order, run it again; run.sh puts its job back into the queue on it


def status(number: int) -> int:
    """The exit status after a signal: `AGAIN` in a SLURM job and for SIGUSR1, else 128 + its number, as shells have it."""
    return AGAIN if "SLURM_JOB_ID" in os.environ or number == signal.SIGUSR1 else 128 + number


class Stop:
    """The request to stop. `signal` is the first signal that came, None as long as none has.

    While `waits` is false, a signal raises SystemExit with its `status`, once: what is being written is cleaned up, and
    a second signal does not disturb that. While it is true, a signal is remembered and nothing else.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.waits = False
        self.replaced: dict[signal.Signals, Any] = {}

    def arm(self, brief: bool = False) -> "Stop":
        """From now on signals come here. A `brief` program is done before what SIGUSR1 warns of, and ignores that."""
        for name in SIGNALS:
            before = signal.signal(
                name, signal.SIG_IGN if brief and name == signal.SIGUSR1 else self.remember
            )
            self.replaced.setdefault(name, before)
        return self

    def disarm(self) -> None:
        for name, handler in self.replaced.items():
            signal.signal(name, handler)
        self.replaced = {}

    def ignore(self) -> None:
        """For the last moments of a program, in which Python would give every signal its fatal meaning again."""
        for name in SIGNALS:
            signal.signal(name, signal.SIG_IGN)

    def remember(self, number: int, frame: Any) -> None:
        self.signal = self.signal or signal.Signals(number)
        if not self.waits:
            self.waits = True
            if (
                os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")) == "0"
            ):  # one process of many says it
                os.write(
                    2,
                    f"\n{os.path.basename(sys.argv[0])}: stopped by {self.signal.name}\n".encode(),
                )  # print may not re-enter
            raise SystemExit(status(number))
