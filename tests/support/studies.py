"""Small studies for tests: a space, a cheap objective, and workers as processes."""

import faulthandler
import functools
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from csi_job.errors import CsiJobError, StopRequestedError
from csi_job.logs import set_up_logging
from csi_job.storage.attributes import PAUSED
from csi_job.storage.claim import Claim, ClaimRules, Counts, NothingToClaim, claim_trial, count_trials
from csi_job.storage.lease import Lease, new_token, worker_id
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import StudyStorage, open_storage, storage_of
from csi_job.storage.tables import LEASES
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.definition import Definition, define_study
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions, WorkerSummary, run_worker
from csi_job.trial.checkpoint import epoch_of, save_checkpoint
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.space import SearchSpace
from tests.support.processes import Process, preload, wait_until

for module in ("tests.support.studies", "numpy.random", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite"):
    preload(module)  # also what every worker would import when it connects and samples

BASELINE = {"unknown_weight": 0.5, "optimizer": "adam"}
CACHE_KEY = "0123456789abcdef"


def toy_space(high: float = 1.0) -> SearchSpace:
    """A number, which is a trial's final value, a choice, and a number that only one choice has."""
    searched = {
        "unknown_weight": {"low": 0, "high": high},
        "optimizer": {"choices": ["adam", "sgd"]},
        "patience": {"low": 1, "high": 5, "step": 1, "when": {"optimizer": ["sgd"]}},
    }
    return SearchSpace.model_validate({**dict.fromkeys(SearchSpace.model_fields), **searched})


SPACE = toy_space()


def value_at(x: float, epoch: int) -> float:
    """The value of an epoch of the trial with unknown_weight `x`: every worker computes the same."""
    return x * (1 - 0.5 ** (epoch + 1))


def write_checkpoint(folder: Path, epoch: int, x: float) -> Path:
    losses = {"train_loss": 1.0, "val_loss": 2.0}
    results = [{"epoch": step, "val_f1": value_at(x, step), **losses} for step in range(epoch + 1)]
    return save_checkpoint(folder, epoch, {"results": results})


def note_computed(folder: Path, number: int, epoch: int) -> None:
    """Note for a test that an epoch of a trial was computed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "computed.log").open("a") as computed:
        computed.write(f"{number} {epoch}\n")


def objective(
    running: RunningTrial[Hyperparameters],
    epoch_s: float = 0.0,
    *,
    note: Callable[[int, int], object] | None = None,
    save: Callable[[Path, int, float], Path] = write_checkpoint,
) -> list[float]:
    """Report a value per epoch, with a checkpoint; resume from the checkpoint it is given."""
    note = note or functools.partial(note_computed, running.work)
    x = running.params.unknown_weight
    first = epoch_of(running.resume_from) + 1 if running.resume_from else 0
    for epoch in range(first, running.max_epochs):
        if epoch_s:
            time.sleep(epoch_s)
        running.batch_done()
        note(running.number, epoch)
        checkpoint = save(running.checkpoint_folder, epoch, x)
        running.report(epoch, value_at(x, epoch), checkpoint=checkpoint)
        running.end_if_behind()
    return [x, running.max_epochs][: len(running.trial.study.directions)]


def storage_settings(url: str, **settings: Any) -> StorageSettings:
    return StorageSettings(url=SecretStr(url), **settings)


def toy_settings(**settings: Any) -> StudySettings:
    return StudySettings(**{"name": "toy", "num_trials": 5, "max_epochs": 4, "num_startup_trials": 3, **settings})


def define(
    storage: StudyStorage,
    *,
    space: SearchSpace = SPACE,
    baseline: Mapping[str, Any] = BASELINE,
    cache_key: str = CACHE_KEY,
    average: str = "macro",
    results: Mapping[str, Any] | None = None,
    tree: Mapping[str, Any] | None = None,
    **settings: Any,
) -> optuna.Study:
    """Define the study `toy`, as every worker does."""
    given = toy_settings(**settings)
    parts: dict[str, Any] = {"cache_key": cache_key, "average": average, "results": results, "tree": tree}
    return define_study(storage, Definition.of(given, space, baseline, **parts))


def study_counts(study: optuna.Study) -> Counts:
    """Count a study's trials by what they mean for its target."""
    return storage_of(study).read(lambda connection: count_trials(connection, study_id_of(study)))


def work_on(study: optuna.Study, work: Path, run: Any = objective, **settings: Any) -> WorkerSummary:
    options = settings.pop("options", None) or WorkerOptions(own_process=False)
    return run_worker(
        study,
        run,
        suggest=settings.pop("suggest", SPACE.suggest),
        settings=toy_settings(**settings),
        work=work,
        options=options,
    )


def claim(study: optuna.Study, **options: Any) -> Claim | NothingToClaim:
    """Claim a trial of a study as a worker does."""
    given = {"token": new_token(), "worker_id": worker_id(), "max_attempts": 3, "max_failed": 10, **options}
    identity = {name: given.pop(name) for name in ("token", "worker_id")}
    return claim_trial(storage_of(study), study._study_id, ClaimRules(**given), **identity)


def leased(study: optuna.Study, **options: Any) -> Lease:
    outcome = claim(study, **options)
    assert isinstance(outcome, Claim)
    return outcome.lease


def pause(storage: StudyStorage, lease: Lease, *values: float) -> None:
    """Pause a trial with the values of its epochs."""
    write = TrialWrite(steps=dict(enumerate(values)), user_attrs={PAUSED: lease.attempt, "attempt": lease.attempt})
    storage.release(lease, write)


def expire(storage: StudyStorage, lease: Lease) -> None:
    """Make a lease too old."""
    with storage.engine.begin() as connection:
        connection.execute(sa.update(LEASES).where(LEASES.c.trial_id == lease.trial_id).values(lease_s=0))


class Worker(Process):
    """A worker process that calls `run` with its settings; its log is a file."""

    def __init__(
        self, url: str, work: Path, *, run: Callable[[dict[str, Any]], object] | None = None, **settings: Any
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.log_file = work / f"worker-{uuid.uuid4().hex[:8]}.log"
        super().__init__(
            _run_process, {"url": url, "work": str(work), **settings}, str(self.log_file), run or work_on_toy
        )

    def wait(self, timeout_s: float = 120) -> int:
        """Return the exit code, negative for a signal."""
        return self.join(timeout_s)

    def wait_for_trial(self) -> None:
        """Wait until it runs a trial, or has ended."""
        wait_until(lambda: not self.process.is_alive() or "trial " in self.log())

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""


def _run_process(arguments: dict[str, Any], log_file: str, run: Callable[[dict[str, Any]], object]) -> None:
    """Run a worker; what stops it is logged in one line, with the program's exit code."""
    handle = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 2)
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    set_up_logging("text")
    try:
        run(arguments)
    except (CsiJobError, StopRequestedError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


def open_own_storage(arguments: dict[str, Any], work: Path) -> StudyStorage:
    """Open a worker's storage; its settings are taken out of the worker's arguments."""
    given = {name: arguments.pop(name) for name in StorageSettings.model_fields if name in arguments}
    return open_storage(StorageSettings(**given), work, create=True)


def work_on_toy(arguments: dict[str, Any]) -> None:
    """Define the study `toy` and work on it, with the cheap objective."""
    work, epoch_s = Path(arguments.pop("work")), arguments.pop("epoch_s", 0.0)
    options = WorkerOptions(stall_s=arguments.pop("stall_s", 60.0))
    arguments.setdefault("lease_s", 2.0)
    study = define(open_own_storage(arguments, work), **arguments)
    work_on(study, work, lambda running: objective(running, epoch_s), options=options, **arguments)


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that go to the server."""
    statements: list[str] = []

    def count(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(engine, "before_cursor_execute", count)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", count)
