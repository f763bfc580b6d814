"""SIGTERM and SIGINT as a flag, checked where stopping is safe."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from csi_job.errors import StopRequestedError

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Stop:
    """Whether a signal asked to stop.

    A handler interrupts the main thread anywhere, also where it holds the lock of an `Event`, which `Event.set` would
    then wait for forever. Releasing a `Lock` is reentrant. So is putting into a `SimpleQueue`, but a `get` from it with
    a timeout may never return where a signal comes after that, as to a process that was stopped (Python 3.12).
    """

    signal_number: int | None = None
    on_request: Callable[[], object] = lambda: None
    """Called with the first request, in the handler."""
    on_force: Callable[[], object] = lambda: None
    """Called before a second Ctrl-C ends the process."""
    _goes_on: threading.Lock = field(default_factory=threading.Lock)
    """Held until the first request."""

    def __post_init__(self) -> None:
        """Hold the lock."""
        self._goes_on.acquire()

    def check(self) -> None:
        """Raise `StopRequestedError` if a signal has arrived."""
        if self.signal_number is not None:
            raise StopRequestedError(self.signal_number)

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Request a stop; a second Ctrl-C ends the process at once."""
        if self.signal_number is not None and number == signal.SIGINT:
            self.on_force()
            os._exit(128 + number)
        if self.signal_number is None:
            self.signal_number = number
            with contextlib.suppress(RuntimeError):  # released before
                self._goes_on.release()
            self.on_request()
            if number == signal.SIGINT and os.isatty(2):  # a batch may take a minute; the log's lock may be held here
                os.write(2, b"\nstopping after this batch; Ctrl-C again stops at once, losing the unfinished epoch\n")

    def wait(self, seconds: float) -> None:
        """Sleep, but wake up and raise `StopRequestedError` on a signal."""
        self.check()
        self._goes_on.acquire(timeout=seconds)
        self.check()


def handled_signals() -> list[signal.Signals]:
    """Return those of the signals that this process does not ignore, as a shell's background job does Ctrl-C."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def listening(stop: Stop | None = None) -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into stop requests inside the block; does nothing outside the main thread."""
    stop = stop or Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.request) for number in handled_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
