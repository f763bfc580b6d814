"""What report, status, export and a worker's own work cost in a study of many trials.

Run: `python -m benchmarks.study_long [--trials N …] [--pruners NAME …] [--postgres]`

The study is made of random trials of 2, 5 or 30 epochs with all their attributes, written through the real storage
(SQLite, or the packaged PostgreSQL). Figures are seconds of processor time, which other work on the machine hardly
changes; on PostgreSQL, that of its server is added. A worker's work is that of `NUM_RUN` further trials of the random
sampler: claim, sampling, epochs, pauses, end. Training and start-up are left out.
"""

import argparse
import io
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import SecretStr
from rich.console import Console

from benchmarks.figures import machine
from csi_job.report.page.page import write_results
from csi_job.storage.optuna_private import frozen_trial_of, study_id_of
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.storage.trial_rows import add_trial
from csi_job.study.definition import Definition, define_study, load_study
from csi_job.study.settings import StudySettings
from csi_job.study.status import study_status
from csi_job.study.target import set_target
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.terminal.trials import render_trials
from csi_job.transfer.export import export_files, write_export
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import WorkFolder
from tests.support.postgres import embedded_server
from tests.support.studies import counted

MAX_EPOCHS, NUM_RUN = 30, 10
NAME = StudySettings().name


def main() -> None:
    """Print a line per number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 3000])
    parser.add_argument("--pruners", nargs="+", default=["median", "asha", "hyperband"])
    parser.add_argument("--postgres", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(machine("optuna"))
    for num_trials in arguments.trials:
        with place_of(postgres=arguments.postgres) as place:
            measure(num_trials, place, arguments.pruners)


@dataclass(frozen=True)
class Place:
    """Where a study is: a work folder, a database, and the server's first process."""

    work: Path
    url: str
    server: psutil.Process | None = None

    def open_storage(self) -> StudyStorage:
        """Open the database as a new process does."""
        return open_storage(StorageSettings(url=SecretStr(self.url)), self.work, create=True)

    def open_study(self) -> optuna.Study:
        """Open the study as a new process does."""
        return load_study(self.open_storage(), NAME)

    def cpu_s(self, call: Callable[[], object]) -> float:
        """Return the processor seconds of a call, here and in the server."""
        began_s = self._clock_s()
        call()
        return self._clock_s() - began_s

    def _clock_s(self) -> float:
        own_s = time.process_time()
        if self.server is None:
            return own_s
        ended = self.server.cpu_times()
        running = [process.cpu_times() for process in (self.server, *self.server.children())]
        return own_s + ended.children_user + ended.children_system + sum(each.user + each.system for each in running)


@contextmanager
def place_of(*, postgres: bool) -> Iterator[Place]:
    """Yield an empty database and work folder."""
    with tempfile.TemporaryDirectory() as work:
        if not postgres:
            yield Place(Path(work), f"sqlite:///{work}/studies.db")
            return
        with embedded_server() as server, server.database() as url:
            process = int((server.data / "postmaster.pid").read_text().split()[0])
            yield Place(Path(work), url, psutil.Process(process))


def measure(num_trials: int, place: Place, pruners: list[str]) -> None:
    """Make a study, and print what each command takes the first time."""
    make_study(num_trials, place)
    commands: dict[str, Callable[[optuna.Study], object]] = {
        "report": lambda study: write_results(study, WorkFolder(place.work)),
        "status": study_status,
        "status again": study_status,
        "export": lambda study: write_export(study, export_files(place.work, NAME)),
        "show": lambda study: Console(file=io.StringIO()).print(render_trials(study)),
    }
    study = place.open_study()
    figures: dict[str, str] = {}
    for name, command in commands.items():
        study = study if name == "status again" else place.open_study()
        figures[name] = f"{place.cpu_s(lambda: command(study)):.3f} s"  # noqa: B023
    for pruner in pruners:
        seconds, num_statements = run_trials(place, pruner)
        figures[f"a trial, {pruner}"] = f"{seconds / NUM_RUN:.3f} s, {num_statements / NUM_RUN:.0f} statements"
    print(f"{num_trials} trials: " + "; ".join(f"{name} {text}" for name, text in figures.items()), flush=True)


def make_study(num_trials: int, place: Place) -> None:
    """Write finished trials into a new study."""
    storage = place.open_storage()
    definition = Definition.of(StudySettings(num_trials=num_trials), SearchSpace(), {}, cache_key="0" * 16)
    study_id = study_id_of(define_study(storage, definition))
    trials = finished_trials(num_trials - 1)
    storage.write(lambda connection: [add_trial(connection, study_id, trial) for trial in trials])


def finished_trials(number: int) -> list[FrozenTrial]:
    """Return trials as a search leaves them."""
    draws, asked = random.Random(1), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = []
    for index in range(number):
        trial = asked.ask()
        SearchSpace().suggest(trial)
        num_epochs = draws.choice([2, 5, MAX_EPOCHS])
        values = {epoch: 0.2 + 0.01 * epoch + 0.1 * draws.random() for epoch in range(num_epochs)}
        attributes = {
            "max_epochs": MAX_EPOCHS,
            "sampler": "random",
            "pruner": "median",
            "num_startup_trials": 10,
            "attempt": 1,
            "worker": f"host:{index % 8}",
            "epochs": num_epochs,
            "best_epoch": num_epochs - 1,
            "losses": [[epoch, draws.random(), draws.random()] for epoch in values],
            "f1_se": 0.02,
            "gflops": 1.2,
            "images_per_s": 100.0,
            "num_parameters": 1_000_000,
        }
        made = create_trial(
            state=TrialState.COMPLETE if num_epochs == MAX_EPOCHS else TrialState.PRUNED,
            value=max(values.values()),
            params=trial.params,
            distributions=frozen_trial_of(trial).distributions,
            user_attrs=attributes,
            intermediate_values=values,
        )
        made.datetime_start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=30 * index)
        made.datetime_complete = made.datetime_start + timedelta(seconds=200)
        trials.append(made)
    return trials


def run_trials(place: Place, pruner: str) -> tuple[float, int]:
    """Run further trials, and return their processor seconds and statements."""
    settings = StudySettings(pruner=pruner, sampler="random", max_epochs=MAX_EPOCHS)  # type: ignore[arg-type]
    storage, space = place.open_storage(), SearchSpace()
    study = define_study(storage, Definition.of(settings, space, {}, cache_key="0" * 16))
    set_target(study, more_trials=NUM_RUN)

    def objective(running: RunningTrial[object]) -> list[float]:
        for epoch in range(len(running.curve), MAX_EPOCHS):
            running.report(epoch, 0.2 + 0.01 * epoch + 0.01 * (running.number % 7))
            running.end_if_behind()
        return [0.5]

    study.get_trials(deepcopy=False)
    given = {"suggest": space.suggest, "settings": settings, "work": place.work}
    options = WorkerOptions(own_process=False)
    with counted(storage.engine) as statements:
        seconds = place.cpu_s(lambda: run_worker(study, objective, **given, options=options))  # type: ignore[arg-type]
    return seconds, len(statements)


if __name__ == "__main__":
    main()
