"""What this process may use of its machine."""

import os
from pathlib import Path


def num_cores() -> int:
    """Return the number of cores this process may use: its affinity, and its container's quota (cgroup v2)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(available, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or the quota is `max`
        return available
