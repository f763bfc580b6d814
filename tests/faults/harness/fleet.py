"""Worker processes under a supervisor that replaces those that are killed and records how each one exited."""

import multiprocessing.connection
import re
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.harness.crash_points import SELF_KILL
from tests.support.processes import num_lines
from tests.support.studies import Worker

LOST: Final = re.compile(r"trial (\d+) no longer belongs to this worker")
NOT_RELEASED: Final = "can be resumed only when its lease has expired"


class FaultyWorker(Worker):
    """A worker process that remembers the signals it was sent."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.signals: set[int] = set()
        self.is_surplus = False
        self.point: str | None = None
        """The crash point at which it should die."""

    def send_signal(self, number: int) -> None:
        self.signals.add(number)
        super().send_signal(number)

    def kill_at_a_point(self) -> None:
        """Have the worker kill itself at one of the next crash points, or kill it if it is not ready for the signal."""
        self.send_signal(signal.SIGUSR2 if self._catches(signal.SIGUSR2) else signal.SIGKILL)

    def _catches(self, number: int) -> bool:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (number - 1) & 1)


@dataclass
class Endings:
    num_started: int = 0
    num_killed: int = 0
    num_killed_themselves: int = 0
    """At crash points; included in `num_killed`."""
    num_terminated: int = 0
    leases_lost: Counter[int] = field(default_factory=Counter)
    """By live workers, which noticed, by trial."""
    num_not_released: int = 0
    num_finished: int = 0
    others: list[str] = field(default_factory=list)
    """Exit codes and last log lines of workers that failed by themselves."""
    points: Counter[str] = field(default_factory=Counter)
    """Crash points that were hit."""

    def take(self, worker: FaultyWorker) -> None:
        code, log = worker.process.exitcode, worker.log()
        point = log.rpartition(SELF_KILL)[2].strip() if SELF_KILL in log else None
        self.leases_lost.update(map(int, LOST.findall(log)))
        self.num_not_released += log.count(NOT_RELEASED)
        if code == 0:
            self.num_finished += 1
        elif code == -signal.SIGKILL and (point or signal.SIGKILL in worker.signals):
            self.num_killed += 1
            self.num_killed_themselves += point is not None
            self.points.update([point] if point else [])
        elif code in {128 + signal.SIGTERM, -signal.SIGTERM} and signal.SIGTERM in worker.signals:
            self.num_terminated += 1
        else:
            self.others.append(f"exit {code}: {log.strip()[-600:]}")
            return
        worker.log_file.unlink(missing_ok=True)


class Fleet:
    """Workers that run until each has exited by itself."""

    def __init__(self, start: Callable[[int], FaultyWorker], num_workers: int = 0) -> None:
        """Start workers; `start` is given a running number."""
        self._start = start
        self.workers: list[FaultyWorker] = []
        self.endings = Endings()
        self.replaces_others = False
        self.resize(num_workers)

    def resize(self, num_workers: int) -> None:
        """Start workers, or terminate the newest as a scale-down does."""
        staying = [worker for worker in self.workers if not worker.is_surplus]
        for worker in staying[num_workers:]:
            worker.is_surplus = True
            worker.send_signal(signal.SIGTERM)
        for _ in range(num_workers - len(staying)):
            self.workers.append(self._next())

    def collect(self, timeout_s: float) -> None:
        """Replace killed workers, as a supervisor does; return once one has exited or after the timeout."""
        if not self.workers:
            return
        multiprocessing.connection.wait([worker.process.sentinel for worker in self.workers], timeout_s)
        for worker in [worker for worker in self.workers if worker.process.exitcode is not None]:
            num_others = len(self.endings.others)
            self.endings.take(worker)
            self.workers.remove(worker)
            is_other = len(self.endings.others) > num_others
            if worker.process.exitcode != 0 and not worker.is_surplus and (self.replaces_others or not is_other):
                self.workers.append(self._next())

    def run_until(self, happened: Callable[[], bool]) -> None:
        """Replace killed workers until something has happened; raise `RuntimeError` if all exit before."""
        while not happened():
            if not self.workers:
                raise RuntimeError(f"the workers ended: {self.endings.others}")
            self.collect(0.02)

    def run_until_computed(self, record: Path, num_epochs: int) -> None:
        """Replace killed workers until they have computed this many epochs in all."""
        self.run_until(lambda: num_lines(record / "computed.log") >= num_epochs)

    def finish(self) -> Endings:
        while self.workers:
            self.collect(1.0)
        return self.endings

    def end(self) -> None:
        for worker in self.workers:
            worker.process.kill()

    def _next(self) -> FaultyWorker:
        self.endings.num_started += 1
        return self._start(self.endings.num_started - 1)
