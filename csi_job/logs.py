"""Logs and progress: text for people, JSON lines for machines, and never a patient's identity."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LogFormat = Literal["auto", "text", "json"]
ANNOUNCE_AFTER_S = 1.0
PROGRESS_LOG_EVERY_S = 15.0  # how often a long step logs its progress when there is no terminal
REPEAT_EVERY_S = 60.0  # how often a line that keeps coming is logged

_root = logging.getLogger("csi_job")


def set_up_logging(log_format: LogFormat) -> None:
    """Send the package's log to standard error; `auto` means JSON in a Kubernetes pod, text elsewhere."""
    json_lines = log_format == "json" or (log_format == "auto" and "KUBERNETES_SERVICE_HOST" in os.environ)
    handler = _TerminalHandler() if sys.stderr.isatty() and not json_lines else logging.StreamHandler(sys.stderr)
    clock = "%H:%M:%S" if isinstance(handler, _TerminalHandler) else "%Y-%m-%d %H:%M:%S"
    handler.setFormatter(_JsonFormatter() if json_lines else logging.Formatter("%(asctime)s %(message)s", clock))
    _root.handlers = [handler]
    _root.setLevel(logging.INFO)
    _root.propagate = False


def progress(description: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """Show the progress of a long step: a bar on a terminal, otherwise an occasional log line.

    Args:
        description: the step, e.g. `caching radiographs`.
        total: number of steps.
        unit: plural noun for what is counted, e.g. `images`.

    Returns:
        a context with `advance(num_steps)`, to call as work is done.
    """
    return (_bar if is_interactive() else _log_lines)(description, total, unit)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Log what is being done if it takes longer than a second."""
    timer = threading.Timer(ANNOUNCE_AFTER_S, _root.info, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def log_line(logger: logging.Logger, level: int, line: str, values: Mapping[str, object]) -> None:
    """Log a line that is complete, with the values in it by name for a JSON log."""
    logger.log(level, "%s", line, extra={"values": values})


def values_of(record: logging.LogRecord) -> Mapping[str, object]:
    """Return the named values of a record: it was logged with a mapping, or by `log_line`."""
    return record.args if isinstance(record.args, Mapping) else getattr(record, "values", {})


class RepeatedWarnings:
    """Logs a warning that keeps coming at most once a minute, with how often it came."""

    def __init__(self, logger: logging.Logger) -> None:
        """Start with no line."""
        self._logger = logger
        self._logged: dict[str, tuple[float, int]] = {}  # by line: when it was last logged, and how often it came since

    def log(self, line: str, **values: object) -> bool:
        """Log the line with these values in it, or count it; return whether it was logged."""
        now = time.monotonic()
        logged_at, times = self._logged.get(line, (-math.inf, 0))
        if now - logged_at < REPEAT_EVERY_S:
            self._logged[line] = (logged_at, times + 1)
            return False
        if times:
            values |= {"times": times + 1, "seconds": round(now - logged_at)}
        again = f" ({times + 1} times in the last {now - logged_at:.0f} s)" if times else ""
        log_line(self._logger, logging.WARNING, f"{line}{again}", values)
        self._logged[line] = (now, 0)
        return True


def is_interactive() -> bool:
    """Return whether the log goes to a terminal, where progress bars can be drawn."""
    return any(isinstance(handler, _TerminalHandler) for handler in _root.handlers)


@functools.cache
def terminal() -> Console:
    """Return the console of standard error, shared by bars and log so that log lines appear above the bars."""
    from rich.console import Console

    return Console(stderr=True)


def progress_bars() -> Progress:
    """Return bars for the terminal, which show nothing without one; each task has a `unit`, a plural noun."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    description, unit = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[unit]}"))
    columns = (description, BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn())
    return Progress(*columns, console=terminal(), disable=not is_interactive())


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    with progress_bars() as bars:
        task = bars.add_task(description, total=total, unit=unit)
        yield lambda num_steps: bars.update(task, advance=num_steps)


@contextmanager
def _log_lines(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done, last = 0, time.monotonic()

    def advance(num_steps: int) -> None:
        nonlocal done, last
        done += num_steps
        if time.monotonic() - last >= PROGRESS_LOG_EVERY_S:
            last = time.monotonic()
            values = {"step": description, "done": done, "total": total, "unit": unit}
            _root.info("%(step)s: %(done)d of %(total)d %(unit)s", values)

    yield advance


class _TerminalHandler(logging.Handler):
    """Prints through the shared console, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and by name the values within the message.

    A message has named values if it is logged with a mapping, as in `info("trial %(trial)d starts", {"trial": 3})`, or
    by `log_line`.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry = {**values_of(record), **entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)
