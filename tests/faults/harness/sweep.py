"""A sweep over all crash points that a study is seen to pass: a worker is killed at each of them."""

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.harness.crash_points import Death
from tests.faults.harness.fleet import Endings, FaultyWorker, Fleet
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.worker import Plan, run
from tests.support.processes import num_lines

SETTINGS: Final[dict[str, Any]] = {"max_epochs": 3, "lease_s": 0.3, "max_attempts": 1000, "sampler": "random"}
NUM_PARALLEL: Final = 4
EPOCH_S: Final = 0.1
MAX_WAIT_S: Final = 20.0
"""A worker that has not reached its point by then is killed, and another one tries."""
AT_RENAME, AT_REPORT = "checkpoint: before rename of .tmp", "report: before statement 1 of transaction 1"


@dataclass
class Sweep:
    """The outcome of a sweep."""

    missed: set[str]
    """Points at which no worker was killed yet."""
    num_kills: int = 0
    complaints: list[str] = field(default_factory=list)


def cause_of(point: str) -> str | None:
    """Return where a worker must have been killed for the next one, which resumes its trial, to pass this point.

    That one removes a half-written checkpoint when it cleans up, or makes the stored epochs match a checkpoint whose
    epoch was not reported.
    """
    if point == "clean up: before remove of .tmp":
        return AT_RENAME
    is_rewrite = point.startswith("ask:") and ("COMMIT" in point or ("transaction" in point and " 1 of " not in point))
    return AT_REPORT if is_rewrite else None


def seen_points(url: str, folder: Path, num_trials: int = 8) -> set[str]:
    """Return the points passed by a study with resumed orphans, a released trial and renewals."""
    settings = {**SETTINGS, "name": "seen", "num_trials": num_trials}
    causes = [AT_RENAME, AT_REPORT]

    def start(index: int) -> FaultyWorker:
        death = Death(at=causes[index] if index < len(causes) else None)
        plan = Plan(folder / "record", death=death, record_points=True, epoch_s=EPOCH_S)
        return FaultyWorker(url, folder, run=run, plan=plan, **settings)

    fleet = Fleet(start, 1)  # alone, so that no other worker resumes the trial when this one is slow
    fleet.run_until(lambda: fleet.endings.num_killed_themselves == len(causes))
    # Until the next trial runs, so that no kill prevents the clean-up after the one whose worker died at a rename.
    _wait_for_epochs(folder / "record", fleet, SETTINGS["max_epochs"] + 1)
    fleet.resize(2)
    for number in (signal.SIGKILL, signal.SIGTERM):
        _wait_for_epochs(folder / "record", fleet, 1)
        fleet.workers[0].send_signal(number)
        fleet.collect(5.0)
    fleet.finish()
    return set((folder / "record" / "points.log").read_text().splitlines())


def _wait_for_epochs(record: Path, fleet: Fleet, number: int) -> None:
    """Wait until this number of further epochs has been computed."""
    fleet.run_until_computed(record, num_lines(record / "computed.log") + number)


@dataclass(frozen=True)
class SweptStudy:
    """A study whose workers are killed at crash points."""

    name: str
    num_trials: int
    points: list[str]
    lease_s: float = SETTINGS["lease_s"]
    num_victims: int = 0
    """Workers killed in their first trial, while others find nothing to claim."""
    num_parallel: int = NUM_PARALLEL


def kill_at_each(url: str, folder: Path, swept: SweptStudy) -> Endings:
    """Kill a worker at each point and let others finish the study."""
    left = [None] * swept.num_victims + swept.points
    began: dict[FaultyWorker, float] = {}

    def start(index: int) -> FaultyWorker:
        point = left.pop(0) if left else None
        plan = Plan(folder / "record", death=Death(at=point), epoch_s=EPOCH_S)
        settings = {**SETTINGS, "lease_s": swept.lease_s, "name": swept.name, "num_trials": swept.num_trials}
        worker = FaultyWorker(url, folder, run=run, plan=plan, **settings)
        worker.point = "victim" if index < swept.num_victims else point
        began[worker] = time.monotonic()
        return worker

    fleet = Fleet(start, swept.num_parallel)
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

    The studies take turns: one of many trials and workers; one of few trials, for the points of workers that wait; one
    with a worker at a time, for the points that are passed only by the next worker after a kill.

    There are at most `num_studies`, of which a slow machine needs more; points still left are reported as missed.
    """
    done = Sweep(set(points))
    for index in range(num_studies):
        # Claims last: workers that wait for the point of a claim that finds no trial would use up the trials before.
        usual = sorted(done.missed, key=lambda point: (point.startswith("claim"), point))
        usual = [point for point in usual if cause_of(point) is None]
        name = f"sweep-{index}"
        pairs = [(cause, point) for point in sorted(done.missed) if (cause := cause_of(point)) is not None]
        swept = (
            SweptStudy(name, num_trials, usual),
            SweptStudy(name, 2, usual, lease_s=4.0, num_victims=2),
            SweptStudy(name, num_trials, [each for pair in pairs for each in pair], num_parallel=1),
        )[index % 3]
        if not swept.points:
            continue
        endings = kill_at_each(url, folder / name, swept)
        expected = Expected(swept.num_trials, SETTINGS["max_epochs"], endings)
        findings = check_study(url, name, folder / name / "record", expected)
        done.missed -= set(endings.points)
        done.num_kills += endings.num_killed_themselves
        done.complaints += [*findings.violations, *endings.others]
    return done
