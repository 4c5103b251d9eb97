"""Keep failed writes to standard output or standard error from ending a script.

    protect_output()      # at the start of a script, before anything is printed

Printing fails if the pipe is closed (`| head -1`), the terminal is closed, the disk is full, or the
encoding lacks a character. None of these may turn finished work into a failure.
"""

import contextlib
import errno
import os
import sys
from typing import Any

READER_GONE = (errno.EPIPE, errno.EIO)  # a closed pipe, a closed terminal


class Protected:
    """A text stream that discards all further output after a write has failed.

    The reason is reported on standard error, except for a closed pipe or terminal.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self.discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.discard(error)

    def discard(self, error: OSError) -> None:
        """Redirect the file descriptor to the null device."""
        if error.errno not in READER_GONE:
            with contextlib.suppress(OSError):
                message = f"{os.path.basename(sys.argv[0])}: the output cannot be written"
                os.write(2, f"{message} ({error.strerror}); continuing without it\n".encode())
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def protect_output() -> None:
    """Protect standard output and standard error.

    Characters that their encoding lacks are printed as escapes. A stream that is already closed is
    replaced by the null device.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 (it stays open)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Protected(stream))
