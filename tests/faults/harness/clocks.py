"""A wrong clock and another time zone for one process."""

import datetime as dt
import os
import sys
import time
from typing import Any


def shift_clock(offset_s: float, time_zone: str) -> None:
    """Shift this process's wall clock and change its time zone; monotonic time is unaffected."""
    os.environ["TZ"] = time_zone
    time.tzset()
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + offset_s
    time.time_ns = lambda: right_ns() + int(offset_s * 1e9)
    real = dt.datetime

    class Shifted(real):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return real.now(tz) + dt.timedelta(seconds=offset_s)

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(seconds=offset_s)

    for module in [module for name, module in sys.modules.items() if name.startswith(("optuna", "csi_job"))]:
        if getattr(module, "datetime", None) is real:
            module.datetime = Shifted
