"""Every crash point once: workers are killed at each of the points that a study was seen to pass."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.harness.crash_points import Death
from tests.faults.harness.fleet import Endings, FaultyWorker, Fleet, accounted
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.worker import Plan, run

SETTINGS: Final[dict[str, Any]] = {
    "max_epochs": 3,
    "lease_s": 0.3,
    "max_attempts": 1000,
    "sampler": "random",
}
AT_ONCE: Final = 4
EPOCH_S: Final = 0.1
PATIENCE_S: Final = 20.0
"""A worker that has not come to its point by then is killed, and another tries."""


@dataclass
class Sweep:
    """What came of it."""

    missed: set[str]
    """Points at which nobody was killed yet."""
    num_kills: int = 0
    complaints: list[str] = field(default_factory=list)


def seen_points(url: str, folder: Path, num_trials: int = 6) -> set[str]:
    """Return the points that are passed by a study with a take-over, a hand-over and renewals."""
    plan = Plan(folder / "record", record_points=True, epoch_s=EPOCH_S)
    settings = {**SETTINGS, "name": "seen", "num_trials": num_trials}
    fleet = Fleet(lambda _: FaultyWorker(url, folder, run=run, plan=plan, **settings), 2)
    for number in (signal.SIGKILL, signal.SIGTERM):
        _wait_for_epochs(folder, fleet)
        if not fleet.workers:
            raise RuntimeError(f"the workers ended: {fleet.endings.others}")
        fleet.workers[0].send_signal(number)
        fleet.collect(5.0)
    fleet.finish()
    return set((folder / "record" / "points.log").read_text().splitlines())


def _wait_for_epochs(folder: Path, fleet: Fleet) -> None:
    """Wait until another epoch was computed."""
    file = folder / "record" / "computed.log"

    def size() -> int:
        return file.stat().st_size if file.exists() else 0

    before = size()
    while size() == before and fleet.workers:
        fleet.collect(0.02)


def kill_at_each(points: set[str], url: str, folder: Path, *, name: str, num_trials: int) -> tuple[set[str], Endings]:
    """Kill a worker at each point, several at once, and let others finish the study.

    Returns:
        the points at which nobody was killed before the study ended, and how the workers ended.

    """
    left = sorted(points)
    began: dict[FaultyWorker, float] = {}

    def start(_index: int) -> FaultyWorker:
        point = left.pop(0) if left else None
        plan = Plan(folder / "record", death=Death(at=point), epoch_s=EPOCH_S)
        settings: dict[str, Any] = {**SETTINGS, "name": name, "num_trials": num_trials}
        worker = FaultyWorker(url, folder, run=run, plan=plan, **settings)
        worker.point = point
        began[worker] = time.monotonic()
        return worker

    fleet = Fleet(start, AT_ONCE)
    while fleet.workers:
        fleet.collect(0.1)
        for worker in fleet.workers:
            age_s = time.monotonic() - began[worker]
            if (worker.point or "").startswith("give back") and not worker.signals and _trains(worker, folder):
                worker.send_signal(signal.SIGTERM)
            elif worker.point and age_s > PATIENCE_S:
                worker.send_signal(signal.SIGKILL)
    return points - set(fleet.endings.points), fleet.endings


def _trains(worker: FaultyWorker, folder: Path) -> bool:
    """Return whether a worker has had a result acknowledged."""
    file = folder / "record" / f"acknowledged-{worker.process.pid}.jsonl"
    return file.exists() and file.stat().st_size > 0


def sweep(points: set[str], url: str, folder: Path, *, num_trials: int, num_studies: int) -> Sweep:
    """Kill a worker at each point; the points that no worker of a study came to are tried again in another.

    Args:
        points: where to kill.
        url: of a database.
        folder: where the workers' files go.
        num_trials: of each study.
        num_studies: after which the points that are left are given up.

    """
    done = Sweep(points)
    for index in range(num_studies):
        name = f"sweep-{index}"
        done.missed, endings = kill_at_each(done.missed, url, folder / name, name=name, num_trials=num_trials)
        expected = Expected(num_trials, SETTINGS["max_epochs"], accounted(endings))
        findings = check_study(url, name, folder / name / "record", expected)
        done.num_kills += endings.num_killed_themselves
        done.complaints += [*findings.violations, *endings.others]
        if not done.missed:
            break
    return done
