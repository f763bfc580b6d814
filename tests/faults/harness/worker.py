"""A worker process under faults: the program's own worker, with a cheap objective and everything watched."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from csi_job.errors import CsiJobError
from csi_job.logs import set_up_logging
from csi_job.study import lease
from csi_job.study.running import RunningTrial
from csi_job.study.schema import needed_version
from csi_job.study.settings import StudySettings
from csi_job.study.storage import open_storage
from csi_job.study.worker import WorkerOptions, run_worker
from tests.faults.harness.acknowledged import Acknowledgements
from tests.faults.harness.clocks import shift_clock
from tests.faults.harness.crash_points import CrashPoints, Death
from tests.studies import FORKS, READER, ToySpace, define, storage_settings, value_at, write_checkpoint

FORKS.set_forkserver_preload(["tests.studies", "tests.faults.harness.worker"])
needed_version()  # reads the scripts of every migration: once, before the workers fork


@dataclass(frozen=True)
class Plan:
    """What is done to a worker beside its work."""

    record: Path
    """Folder of what the workers write for the harness."""
    death: Death = field(default_factory=Death)
    record_points: bool = False
    own_host: bool = False
    """Whether the worker seems to run on a host of its own, so that its death shows by its lease's age only."""
    clock_offset_s: float = 0.0
    time_zone: str = "UTC"
    high: float = 1.0
    """Upper bound of the search space's number."""


class Watch:
    """Tells crash points which phase a worker is in, and writes down what was acknowledged and computed."""

    def __init__(self, points: CrashPoints, plan: Plan) -> None:
        self.points, self.record = points, plan.record
        self.acknowledgements = Acknowledgements(plan.record)
        self.values: dict[int, float] = {}

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Any) -> None:
        del number, attempt, params, phase
        self.points.enter("train")

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Take no note."""

    def trial_ended(self, number: int, outcome: str) -> None:
        if outcome in {"complete", "pruned"}:
            self.acknowledgements.write("tell", number, outcome, self.values[number])
        self.points.enter("claim" if outcome == "left" else "clean up")

    def close(self) -> None:
        """Have nothing to close."""

    def told(self, _summary: Any) -> None:
        self.points.enter("claim")

    def suggest(self, trial: optuna.Trial, high: float) -> dict[str, Any]:
        self.points.enter("ask")
        return ToySpace(high).suggest(trial)

    def objective(self, train: Callable[[RunningTrial[Any]], Any]) -> Callable[[RunningTrial[Any]], Any]:
        """Wrap an objective: its reports are watched, and so is how it ends."""

        def objective(running: RunningTrial[Any]) -> Any:
            self._watch(running)
            try:
                values = train(running)
            except optuna.TrialPruned:
                self.points.enter("tell")
                raise
            except CsiJobError:
                self.points.enter("give back")
                raise
            self.values[running.number] = values[0]
            self.points.enter("tell")
            return values

        return objective

    def _watch(self, running: RunningTrial[Any]) -> None:
        report, should_prune = running.report, running.should_prune

        def watched_report(epoch: int, value: float, *, checkpoint: Path | None = None) -> None:
            self.values[running.number] = value
            with self.points.within("report"):
                report(epoch, value, checkpoint=checkpoint)
            if epoch not in running.unsent().steps:
                self.acknowledgements.write("report", running.number, epoch, value)

        def watched_should_prune() -> bool:
            with self.points.within("prune"):
                return should_prune()

        running.report, running.should_prune = watched_report, watched_should_prune

    def computed(self, number: int, epoch: int) -> None:
        with (self.record / "computed.log").open("a") as file:
            file.write(f"{number} {epoch}\n")


def dummy(watch: Watch, epoch_s: float) -> Callable[[RunningTrial[Any]], list[float]]:
    """Return an objective that costs nothing: an epoch is a number, written down, kept in a checkpoint, reported."""

    def train(running: RunningTrial[Any]) -> list[float]:
        first = max(READER.values(running.resume_from), default=-1) + 1 if running.resume_from else 0
        for epoch in range(first, running.max_epochs):
            time.sleep(epoch_s)
            running.batch_done()
            watch.computed(running.number, epoch)
            with watch.points.within("checkpoint"):
                checkpoint = write_checkpoint(running.checkpoint_folder, epoch, running.params)
            running.report(epoch, value_at(running.params, epoch), checkpoint=checkpoint)
            if running.should_prune():
                raise optuna.TrialPruned
        return [running.params["x"]]

    return train


def run(arguments: dict[str, Any]) -> int:
    """Be a worker process; the exit code is the program's own."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    set_up_logging("text")
    plan: Plan = arguments.pop("plan")
    work, epoch_s = Path(arguments.pop("work")), arguments.pop("epoch_s", 0.0)
    storage_part = {key: arguments.pop(key) for key in ("lease_s", "outage_s", "connect_s") if key in arguments}
    points = CrashPoints(plan.death, plan.record / "points.log" if plan.record_points else None)
    points.install()
    watch = Watch(points, plan)
    if plan.own_host:
        lease._process_space = lambda: (f"boot of {os.getpid()}", "pid:[1]")
    if plan.clock_offset_s or plan.time_zone != "UTC":
        shift_clock(plan.clock_offset_s, plan.time_zone)
    try:
        storage = open_storage(storage_settings(arguments.pop("url"), **storage_part), work, create=True)
        study = define(storage, space=ToySpace(plan.high), **arguments)
        points.enter("claim")
        run_worker(
            study,
            watch.objective(dummy(watch, epoch_s)),
            suggest=lambda trial: watch.suggest(trial, plan.high),
            settings=StudySettings(**arguments),
            work=work,
            checkpoints=READER,
            options=WorkerOptions(stall_s=300.0, tracker=watch, on_told=watch.told),
        )
    except CsiJobError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
