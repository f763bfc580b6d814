"""What a worker's process sends to the one that started it: log lines, progress, and why it ends, as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Self

from csi_job.logs import values_of

if TYPE_CHECKING:
    from csi_job.storage.attributes import TrialOutcome

LOG, ERROR, FINISHED = "log", "error", "finished"


class Relay(logging.Handler):
    """The worker's end: a log handler and a tracker."""

    def __init__(self, pipe: IO[bytes]) -> None:
        """Send through a pipe."""
        super().__init__()
        self._pipe = pipe
        self._sending = threading.Lock()

    @classmethod
    def on_stdout(cls) -> Self:
        """Keep standard output to the relay: what else is printed there goes to standard error."""
        pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        return cls(pipe)

    def send(self, kind: str, *values: Any) -> None:
        """Send one line; a parent that is gone is not worth an error, see `stop_with_parent`."""
        line = json.dumps([kind, *values], default=str) + "\n"
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._pipe.write(line.encode())
            self._pipe.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log record, with its named values."""
        text = self.format(record)
        self.send(LOG, record.name, record.levelno, record.created, text, values_of(record))

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Mapping[str, Any]) -> None:
        """Send that a trial starts."""
        self.send("trial_started", number, attempt, params, phase)

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Send an epoch."""
        self.send("epoch", number, epoch, metrics)

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:
        """Send that a trial ended."""
        self.send("trial_ended", number, outcome)


def stop_with_parent() -> None:
    """Stop this process as SIGTERM does when standard input ends, which is when its parent does."""
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def received(pipe: IO[bytes]) -> Iterator[tuple[str, list[Any]]]:
    """Yield what a worker sends until it ends."""
    for line in pipe:
        with contextlib.suppress(ValueError):  # cut short by the worker's death
            kind, *values = json.loads(line)
            yield kind, values


def log_as_worker(worker: int, name: str, level: int, created: float, text: str, fields: Mapping[str, Any]) -> None:
    """Log a worker's record in this process, with the worker's number."""
    parts = {
        "name": name,
        "levelno": level,
        "levelname": logging.getLevelName(level),
        "created": created,
        "msecs": created % 1 * 1000,
        "msg": f"worker %(worker)d: {text.replace('%', '%%')}",
        "args": {**fields, "worker": worker},
    }
    logging.getLogger(name).handle(logging.makeLogRecord(parts))
