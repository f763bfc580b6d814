"""Several workers, each in its own process with its own GPU: started, restarted when they die, stopped."""

import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import torch

from csi_job.errors import CsiJobError
from csi_job.machine import num_cores
from csi_job.signals import Stop, listening
from csi_job.study.relay import ERROR, LOG, log_as_worker, received
from csi_job.study.settings import StudySettings
from csi_job.trial.memory import choose_device
from csi_job.trial.settings import TrialSettings

logger = logging.getLogger(__name__)
Environment = dict[str, str]
DRIVER_LIMIT_S: Final = 10.0  # a broken driver may never answer
MAX_RESTARTS: Final = 3  # of a worker, in a row without a finished epoch


class WorkerError(CsiJobError):
    """The error of a worker in its own process."""

    def __init__(self, message: str, exit_code: int, *, ends_search: bool) -> None:
        """Take the worker's exit code; `ends_search` says that a restart would be pointless."""
        super().__init__(message)
        self.exit_code, self.ends_search = exit_code, ends_search


@dataclass
class _Worker:
    number: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    num_deaths: int = 0
    """In a row without a finished epoch."""
    error: WorkerError | None = None


class WorkerGroup:
    """Runs a worker per environment; each is a fresh interpreter, which inherits no thread and no CUDA context."""

    def __init__(
        self,
        module: str,
        environments: Sequence[Mapping[str, str]],
        request: Callable[[], bytes],
        on_event: Callable[[int, str, Sequence[Any]], None],
    ) -> None:
        """Set up the workers.

        Args:
            module: what each process runs.
            environments: each worker's variables, in addition to those of this process.
            request: returns what a process reads from its standard input as it starts.
            on_event: called with the worker's number, from 1, and what it sent through its `Relay`.
        """
        self._command = [sys.executable, "-P", "-m", module]
        self._request, self._on_event = request, on_event
        self._workers = [_Worker(number, environment) for number, environment in enumerate(environments, start=1)]
        self._events: queue.SimpleQueue[tuple[_Worker, str, list[Any]] | None] = queue.SimpleQueue()
        self._is_ending = False
        self._error: CsiJobError | None = None

    def run(self) -> None:
        """Return when every worker is done.

        A worker that dies is restarted. The trial that it leaves behind is resumed by whichever worker claims next.

        Raises:
            StopRequestedError: SIGTERM or SIGINT; all workers have stopped.
            WorkerError: of a worker, if it ends the search; or the last one's, which died too often.
        """
        with listening(Stop(on_request=lambda: self._events.put(None), on_force=self._kill)) as stop:
            try:
                for worker in self._workers:
                    self._start(worker)
                while any(worker.process for worker in self._workers):
                    self._handle(self._events.get())
            finally:
                self._kill()
        stop.check()
        if self._error is not None:
            raise self._error

    def _start(self, worker: _Worker) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **worker.environment}
        request, pipe = self._request(), subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, env=environment)  # noqa: S603 - this program
        worker.process, worker.error = process, None
        threading.Thread(target=self._read, args=(worker, process, request), daemon=True).start()

    def _read(self, worker: _Worker, process: subprocess.Popen[bytes], request: bytes) -> None:
        """Send a worker its request, and queue what it sends and how it ends; runs in a thread."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()  # left open: when it ends, which is when this process does, the worker stops
        except BrokenPipeError:
            pass  # it died; its exit code says more
        for kind, values in received(process.stdout):
            self._events.put((worker, kind, values))
        self._events.put((worker, "exit", [process.wait()]))

    def _handle(self, event: tuple[_Worker, str, list[Any]] | None) -> None:
        if event is None:  # a signal
            self._end()
            return
        worker, kind, values = event
        if kind == "exit":
            self._on_exit(worker, *values)
        elif kind == ERROR:
            message, exit_code, ends_search = values
            worker.error = WorkerError(message, exit_code, ends_search=ends_search)
        elif kind == LOG:
            log_as_worker(worker.number, *values)
        else:
            if kind == "epoch":
                worker.num_deaths = 0
            self._on_event(worker.number, kind, values)

    def _on_exit(self, worker: _Worker, code: int) -> None:
        worker.process = None
        if code == 0 or self._is_ending:
            return
        how = f"ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        how = "killed, perhaps because memory ran out" if code == -signal.SIGKILL else how
        error = worker.error or WorkerError(how, 1, ends_search=False)
        worker.num_deaths += 1
        values = {"worker": worker.number, "reason": error}
        if error.ends_search:
            self._error = error
            self._end()
        elif worker.num_deaths <= MAX_RESTARTS:
            logger.warning("worker %(worker)d: %(reason)s; restarting it", values)
            self._start(worker)
        else:
            logger.error("worker %(worker)d: %(reason)s; giving it up, since it keeps dying without an epoch", values)
            if not any(other.process for other in self._workers):
                self._error = error

    def _end(self) -> None:
        """Stop all workers as SIGTERM does, and restart none any more."""
        self._is_ending = True
        for worker in self._workers:
            if worker.process is not None:
                worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()


# What each worker's process may use: its own GPU, and a share of the cores


def visible_gpus() -> list[str]:
    """Return the GPUs of this process, each as the value of CUDA_VISIBLE_DEVICES that shows it alone.

    A process sees at most one MIG instance, whatever CUDA counts, so these come from their list.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0  # neither creates a CUDA context
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = _driver_uuids() if given is None else [name.strip() for name in given.split(",")]
    instances = [name for name in names if name.startswith("MIG-")]
    if not instances:
        wanted = [*takewhile(re.compile(r"\d+$|GPU-").match, names)]  # a name such as -1 or none hides the rest
        if num_gpus < len(wanted):
            source = "nvidia-smi lists" if given is None else "CUDA_VISIBLE_DEVICES names"
            values = {"usable": num_gpus, "wanted": len(wanted), "source": source}
            logger.warning("torch can use only %(usable)d of the %(wanted)d GPUs that %(source)s", values)
    if given is not None and num_gpus:
        return instances or names[:num_gpus]
    return names if instances and num_gpus else [str(index) for index in range(num_gpus)]


def _driver_uuids() -> list[str]:
    """Return the UUIDs of all MIG instances, and of the GPUs without any; none if the driver's tool does not answer."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - wherever the driver put it
            capture_output=True,
            text=True,
            check=False,
            timeout=DRIVER_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"\(UUID: (MIG-[^)]+|GPU-[^)]+(?=\)(?!\s+MIG)))", listed.stdout)


def worker_environments(study: StudySettings, trial: TrialSettings) -> list[Environment]:
    """Check the devices, before any trial is claimed, and return the environment variables of each worker's process.

    Raises:
        ConfigurationError: there are more workers than GPUs.
        ResourceError: a GPU is requested and there is none.
    """
    gpus = [] if trial.device == "cpu" else visible_gpus()
    num_workers = study.num_workers(len(gpus))
    if num_workers == 1 or not gpus:  # else this process must take no memory of a GPU
        choose_device(trial)
    num_threads = max(num_cores() // num_workers, 1)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(num_threads))}
    return [{**threads, **({"CUDA_VISIBLE_DEVICES": gpus[n]} if gpus else {})} for n in range(num_workers)]
