"""What a call costs: CPU time and memory, for tests that no input may cost more than the largest sound one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Cost:
    """CPU seconds, of all threads, and the bytes by which the process grew at most."""

    cpu_s: float
    peak_bytes: int

    def is_within(self, other: "Cost") -> bool:
        """Return whether this is not clearly more than another call's cost."""
        return self.cpu_s <= 2 * other.cpu_s + 1 and self.peak_bytes <= 1.2 * other.peak_bytes + 32 * MEBIBYTE


def cost_of(call: Callable[[], object]) -> Cost:
    """Measure a call; the kernel's own mark of the peak counts decoders in C too."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again
    before, start = _resident("VmRSS"), time.process_time()
    call()
    return Cost(time.process_time() - start, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
