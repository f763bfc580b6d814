"""A worker process under faults: the program's own worker, with a cheap objective and everything watched."""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from csi_job.errors import CsiJobError, StopRequestedError, TrialPausedError
from csi_job.storage import lease
from csi_job.storage.attributes import TrialOutcome
from csi_job.study.definition import Definition, define_study
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.trial.space import SearchSpace
from tests.faults.harness.acknowledged import Acknowledgements
from tests.faults.harness.clocks import shift_clock
from tests.faults.harness.crash_points import CrashPoints, Death
from tests.support.processes import preload
from tests.support.studies import (
    BASELINE,
    CACHE_KEY,
    note_computed,
    objective,
    open_own_storage,
    toy_space,
    write_checkpoint,
)

preload("tests.faults.harness.worker")
gc.freeze()  # before the workers fork: a collection would copy the pages that all of them share


@dataclass(frozen=True)
class Plan:
    """What happens to a worker besides its work."""

    record: Path
    """Folder in which the workers write for the harness."""
    death: Death = field(default_factory=Death)
    record_points: bool = False
    own_host: bool = False
    """Whether the worker appears to run on a separate host, so that only its lease's age reveals its death."""
    clock_offset_s: float = 0.0
    time_zone: str = "UTC"
    high: float = 1.0
    """Upper bound of the search space's number."""
    epoch_s: float = 0.0
    """Seconds that an epoch of the dummy objective takes."""
    start_at_s: float = 0.0
    """Common start time of several workers, in seconds since 1970."""
    cache: Path | None = None
    """What real training trains on."""
    work: Path | None = None
    """The work folder, if not the logs' folder."""


@dataclass(frozen=True)
class Task:
    """What a worker works on."""

    space: SearchSpace
    baseline: dict[str, Any]
    cache_key: str
    train: Callable[["Watch"], Callable[[RunningTrial[Any]], Any]]


class Watch:
    """Names the phases of a worker for crash points, and records what was acknowledged and computed."""

    def __init__(self, points: CrashPoints, plan: Plan) -> None:
        self.points, self.record = points, plan.record
        self.acknowledgements = Acknowledgements(plan.record)
        self.values: dict[int, float] = {}
        self._noted: set[int] = set()

    def trial_started(self, *_given: Any) -> None:
        self._noted = set()
        self.points.enter("train")

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Do nothing."""

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:
        value = self.values.pop(number, None)  # None: pruned as it was resumed, or by a claim while it was paused
        if outcome in {"complete", "pruned"}:
            self.acknowledgements.write("tell", number, outcome, value)
        self.points.enter("claim" if outcome is None else "clean up")

    def finished(self, _summary: Any) -> None:
        self.points.enter("claim")

    def suggest(self, trial: optuna.Trial, space: Any) -> Any:
        self.points.enter("ask")
        return space.suggest(trial)

    def objective(self, train: Callable[[RunningTrial[Any]], Any]) -> Callable[[RunningTrial[Any]], Any]:
        """Wrap an objective to record its reports and how it ends."""

        def objective(running: RunningTrial[Any]) -> Any:
            self._watch(running)
            try:
                values = train(running)
            except optuna.TrialPruned:
                self.points.enter("tell")
                raise
            except TrialPausedError:
                self.points.enter("pause")
                raise
            except (CsiJobError, StopRequestedError):
                self.points.enter("release")
                raise
            self.values[running.number] = values[0]
            self.points.enter("tell")
            return values

        return objective

    def _watch(self, running: RunningTrial[Any]) -> None:
        report = self.points.within("report")(running.report)

        def watched_report(epoch: int, value: float, *, checkpoint: Path | None = None) -> None:
            self.values[running.number] = value
            self.computed(running.number, epoch)
            report(epoch, value, checkpoint=checkpoint)
            if epoch not in running.unsent.steps:
                self.acknowledgements.write("report", running.number, epoch, value)

        running.report, running.end_if_behind = watched_report, self.points.within("prune")(running.end_if_behind)

    def computed(self, number: int, epoch: int) -> None:
        """Record once that an epoch was computed."""
        if epoch not in self._noted:
            self._noted.add(epoch)
            note_computed(self.record, number, epoch)


def dummy_task(plan: Plan) -> Task:
    """Return trials that cost nothing: each epoch is a number that is recorded, checkpointed and reported."""

    def train(watch: Watch) -> Callable[[RunningTrial[Any]], list[float]]:
        save = watch.points.within("checkpoint")(write_checkpoint)
        return lambda running: objective(running, plan.epoch_s, note=watch.computed, save=save)

    return Task(toy_space(plan.high), BASELINE, CACHE_KEY, train)


def run(arguments: dict[str, Any]) -> None:
    """Run a worker process with dummy trials."""
    run_observed(arguments, dummy_task)


def wait_for_start(plan: Plan) -> None:
    """Sleep until the common start time."""
    time.sleep(max(0.0, plan.start_at_s - time.time()))


def run_observed(arguments: dict[str, Any], task_of: Callable[[Plan], Task]) -> None:
    """Run the program's worker, observed."""
    plan: Plan = arguments.pop("plan")
    plan.record.mkdir(parents=True, exist_ok=True)
    points = CrashPoints(plan.death, plan.record / "points.log" if plan.record_points else None)
    points.install()
    wait_for_start(plan)
    if plan.own_host:
        lease._boot_and_pid_namespace = lambda: (f"boot of {os.getpid()}", "pid:[1]")
    if plan.clock_offset_s or plan.time_zone != "UTC":
        shift_clock(plan.clock_offset_s, plan.time_zone)
    _search(arguments, plan, task_of(plan), Watch(points, plan))


def _search(arguments: dict[str, Any], plan: Plan, task: Task, watch: Watch) -> None:
    logs = Path(arguments.pop("work"))
    work = plan.work or logs
    storage = open_own_storage(arguments, work)
    settings = StudySettings(**arguments)
    study = define_study(storage, Definition.of(settings, task.space, task.baseline, cache_key=task.cache_key))
    watch.points.enter("claim")
    run_worker(
        study,
        watch.objective(task.train(watch)),
        suggest=lambda trial: watch.suggest(trial, task.space),
        settings=settings,
        work=work,
        options=WorkerOptions(stall_s=300.0, trackers=[watch], on_trial_finished=watch.finished),
    )
