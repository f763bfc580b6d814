"""Processes forked from a warm server, since importing PyTorch and Optuna takes longer than most tests need."""

import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # where the server finds this module and the package
FORKS = multiprocessing.get_context("forkserver")
_preloaded: list[str] = []


def preload(module: str) -> None:
    """Let the server import a module before its first fork."""
    _preloaded.append(module)
    FORKS.set_forkserver_preload(_preloaded)


def wait_until(happened: Callable[[], object], limit_s: float = 120.0) -> None:
    """Return once a condition is true, which is checked every 20 ms; fail after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > deadline:
            message = f"it did not happen within {limit_s:.0f} s"
            raise TimeoutError(message)
        time.sleep(0.02)


def num_lines(file: Path) -> int:
    """Return how many lines a file has, 0 if it does not exist yet."""
    return len(file.read_text().splitlines()) if file.exists() else 0


class Process:
    """A forked process whose exit code and signals are seen from outside."""

    def __init__(self, target: Callable[..., object], *arguments: Any) -> None:
        self.process = FORKS.Process(target=target, args=arguments)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.process.pid and self.process.is_alive():
            with suppress(ProcessLookupError):  # it ended just now; its sentinel shows that a moment later
                os.kill(self.process.pid, number)

    def join(self, timeout_s: float) -> int:
        """Return the exit code; a process that hangs writes its stacks to its standard error and is killed."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.send_signal(signal.SIGUSR1)
            time.sleep(1)
            self.process.kill()
            message = f"the process hangs: {self.log()}"
            raise TimeoutError(message)
        return self.process.exitcode

    def log(self) -> str:
        """What it wrote to standard error."""
        return ""


class Command(Process):
    """A `csi-job` command with its output in files; has what tests use of `subprocess.Popen`."""

    def __init__(self, *arguments: str, environment: Mapping[str, str]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.out, self.err = folder / "out", folder / "err"
        super().__init__(_run_command, arguments, dict(environment), str(self.out), str(self.err))

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the end and return the output."""
        self.join(timeout)
        return self.out.read_text(), self.err.read_text()

    def log(self) -> str:
        return self.err.read_text() if self.err.exists() else ""


def _run_command(arguments: tuple[str, ...], environment: dict[str, str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["csi-job", *arguments]
    from csi_job.cli import main

    main()


def cold_command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a new interpreter, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-c", "from csi_job.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
