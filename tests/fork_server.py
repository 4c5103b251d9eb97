"""Start scripts quickly: one process imports torch and Lightning, and forks for each command.

    server = Server()
    child = server.start(["train.py", "--dataset", ...], cwd, environment, out, err)
    child.pid, child.poll(), child.wait(timeout)           # as in subprocess.Popen

Importing torch and Lightning takes several seconds, and the tests of signals, kills and several
processes start dozens of scripts. A child is like any other process: it has its own session,
working directory, environment and open files, Python's signal handlers, no module of this project
imported yet, and it ends as any Python process does. Tests of what happens before torch is imported
must start the script itself.

The server forks a watcher, and that forks the child, waits for it and writes its status.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

LIBRARIES = (
    "numpy",
    "PIL.Image",
    "torch",
    "torchvision",
    "pytorch_lightning",
    "torch.utils.tensorboard",
)


class Child:
    """A command that the server has started."""

    def __init__(self, pid: int, status_file: Path):
        self.pid, self.status_file = pid, status_file
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, -N after signal N, or None while the command runs."""
        if self.returncode is None:
            with contextlib.suppress(FileNotFoundError):
                self.returncode = int(self.status_file.read_text())
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode


class Server:
    """The client's handle of the server, which exits with the process that started it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C does not reach it
        )
        atexit.register(self.process.stdin.close)

    def start(self, argv: list[str], cwd: Path, environment: dict, out: Path, err: Path) -> Child:
        """Start `python ARGV...`: a script, or `-c` and code."""
        status_file = out.with_suffix(".status")
        request = dict(
            argv=argv,
            cwd=str(cwd),
            environment=environment,
            files=[str(out), str(err)],
            status_file=str(status_file),
        )
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return Child(int(self.process.stdout.readline()), status_file)


def serve() -> dict:
    """Fork for each request on standard input; return only in the child, with its request."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    while line := requests.readline():
        request = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                become(request)
                return request
            _, status = os.waitpid(child, 0)
            complete = Path(request["status_file"])
            being_written = complete.with_suffix(".status_")
            being_written.write_text(str(os.waitstatus_to_exitcode(status)))
            being_written.rename(complete)
            os._exit(0)
    os._exit(0)


def become(request: dict) -> None:
    """Give this process what a newly started one would have."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    inputs = os.open(os.devnull, os.O_RDONLY)
    outputs = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for file in request["files"]]
    os.write(1, f"{os.getpid()}\n".encode())
    for number, opened in enumerate([inputs, *outputs]):
        os.dup2(opened, number)
        os.close(opened)


def run(argv: list[str]) -> None:
    """Do what `python ARGV...` does."""
    if argv[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *argv[2:]], ""
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers leave no zombies
    run(serve()["argv"])
