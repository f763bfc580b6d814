"""What benchmarks share: the machine, the seconds of a process, and medians with their spread."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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


def measure(arguments: Sequence[str], python_path: Path | None = None) -> tuple[float, float]:
    """Return the seconds of wall clock and of the processor that a new interpreter takes.

    Args:
        arguments: of the interpreter.
        python_path: another checkout of this repository to import from.

    Raises:
        SystemExit: it ended with another code than 0, or 2 of a wrong argument.
    """
    environment = os.environ | ({"PYTHONPATH": str(python_path)} if python_path else {})
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-W", "ignore", *arguments]
    # `-c` and `-m` import from the current folder first, so that this must be the other checkout too.
    ended = subprocess.run(command, check=False, capture_output=True, env=environment, cwd=python_path)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    if ended.returncode not in (0, 2):
        raise SystemExit(ended.stderr.decode())
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wall_s(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, timed: Callable[[Callable[[], object]], float] = wall_s
) -> dict[str, list[float]]:
    """Return what each variant takes in each round; every other round runs them in reverse order."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in [*variants][:: -1 if number % 2 else 1]:
            times[name].append(timed(variants[name]))
    return times


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return `median [lower quartile, upper quartile]`, with three digits or all before the point."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    low, middle, high = (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" for value in quartiles)
    return f"{middle}{unit} [{low}, {high}]"
