"""What each benchmark prints: the machine, and medians with their spread."""

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def machine(*packages: str) -> str:
    """Return the line that says what ran this, with the versions of these packages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cpu = f"{next(names, platform.machine())}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    versions = [f"{name} {version(name)}" for name in packages]
    return ", ".join(
        [cpu, f"{platform.system()} {platform.release()}", f"Python {platform.python_version()}", *versions]
    )


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return `median [lower quartile, upper quartile]`, with three digits or all before the point."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    low, middle, high = (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" for value in quartiles)
    return f"{middle}{unit} [{low}, {high}]"
