"""SIGTERM and SIGINT: a flag that is looked at where stopping is safe."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from csi_job.errors import StopRequestedError
from csi_job.logs import get_logger

logger = get_logger(__name__)
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Stop:
    """Whether a signal asked to stop; `event` is set then, so that nobody sleeps on."""

    signal_number: int | None = None
    event: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise `StopRequestedError` if a signal came."""
        if self.signal_number is not None:
            raise StopRequestedError(self.signal_number)

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Ask to stop; the second Ctrl-C ends the process at once."""
        if self.signal_number is not None and number == signal.SIGINT:
            os._exit(128 + number)
        if self.signal_number is None:
            self.signal_number = number
            self.event.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but not through a request to stop."""
        self.event.wait(seconds)
        self.check()


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into requests while the block runs; in another thread than the main one do nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
