"""A sweep over all crash points that a study is seen to pass: a worker is killed at each of them."""

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
NUM_PARALLEL: Final = 4
EPOCH_S: Final = 0.1
MAX_WAIT_S: Final = 20.0
"""A worker that has not reached its point by then is killed, and another one tries."""


@dataclass
class Sweep:
    """The outcome of a sweep."""

    missed: set[str]
    """Points at which no worker was killed yet."""
    num_kills: int = 0
    complaints: list[str] = field(default_factory=list)


def seen_points(url: str, folder: Path, num_trials: int = 6) -> set[str]:
    """Return the points passed by a study with a resumed orphan, a released trial and renewals."""
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
    """Wait until another epoch has been computed."""
    file = folder / "record" / "computed.log"

    def size() -> int:
        return file.stat().st_size if file.exists() else 0

    before = size()
    while size() == before and fleet.workers:
        fleet.collect(0.02)


@dataclass(frozen=True)
class SweptStudy:
    """A study whose workers are killed at crash points."""

    name: str
    num_trials: int
    lease_s: float = SETTINGS["lease_s"]
    num_victims: int = 0
    """Workers killed in their first trial, while others find nothing to claim."""


def is_rare(point: str) -> bool:
    """Whether a worker passes it only after another was killed while writing a checkpoint or before reporting it.

    It then resumes a trial with a file that was left half-written, or one whose stored epochs do not match the
    checkpoint, which it rewrites before it asks.
    """
    is_rewrite = point.startswith("ask:") and ("transaction" in point or "COMMIT" in point)
    return is_rewrite or point == "clean up: before remove of .tmp"


def kill_at_each(points: set[str], url: str, folder: Path, swept: SweptStudy) -> Endings:
    """Kill a worker at each point, several in parallel, and let others finish the study."""
    # Rare points last: four workers waiting for such points would finish the study before any other could die.
    left = [None] * swept.num_victims + sorted(points, key=lambda point: (is_rare(point), point))
    began: dict[FaultyWorker, float] = {}

    def start(index: int) -> FaultyWorker:
        point = left.pop(0) if left else None
        plan = Plan(folder / "record", death=Death(at=point), epoch_s=EPOCH_S)
        settings = {**SETTINGS, "lease_s": swept.lease_s, "name": swept.name, "num_trials": swept.num_trials}
        worker = FaultyWorker(url, folder, run=run, plan=plan, **settings)
        worker.point = "victim" if index < swept.num_victims else point
        began[worker] = time.monotonic()
        return worker

    fleet = Fleet(start, NUM_PARALLEL)
    while fleet.workers:
        fleet.collect(0.1 if not swept.num_victims else 0.01)
        for worker in fleet.workers:
            if worker.signals:
                continue
            if worker.point == "victim" and _trains(worker, folder):
                worker.send_signal(signal.SIGKILL)
            elif (worker.point or "").startswith("release") and _trains(worker, folder):
                worker.send_signal(signal.SIGTERM)
            elif worker.point and time.monotonic() - began[worker] > MAX_WAIT_S:
                worker.send_signal(signal.SIGKILL)
    return fleet.endings


def _trains(worker: FaultyWorker, folder: Path) -> bool:
    """Return whether a worker has an acknowledged result."""
    file = folder / "record" / f"acknowledged-{worker.process.pid}.jsonl"
    return file.exists() and file.stat().st_size > 0


def sweep(points: set[str], url: str, folder: Path, *, num_trials: int, num_studies: int) -> Sweep:
    """Kill a worker at each point; points that no worker of a study reached are tried again in another study.

    Args:
        points: where to kill.
        url: of a database.
        folder: for the workers' files.
        num_trials: per study, except every second one, which has few, for the points of workers that wait.
        num_studies: studies at most; points still left are reported as missed.

    """
    done = Sweep(set(points))
    for index in range(num_studies):
        swept = SweptStudy(f"sweep-{index}", num_trials)
        if index % 2 == 1:
            swept = SweptStudy(swept.name, num_trials=2, lease_s=4.0, num_victims=2)
        endings = kill_at_each(done.missed, url, folder / swept.name, swept)
        expected = Expected(swept.num_trials, SETTINGS["max_epochs"], accounted(endings))
        findings = check_study(url, swept.name, folder / swept.name / "record", expected)
        done.missed -= set(endings.points)
        done.num_kills += endings.num_killed_themselves
        done.complaints += [*findings.violations, *endings.others]
        if not done.missed:
            break
    return done
