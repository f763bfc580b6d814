"""Studies carried between SQLite and PostgreSQL and between spaces, while workers run and when started twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.storage.claim import Claim, claim_trial
from csi_job.storage.lease import new_token
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.definition import load_study, set_target
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import sample_params
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.transfer.backup import read_backup, restore_backup
from csi_job.transfer.backup_file import Backup, decode, encode
from csi_job.transfer.migrate import migrate_study
from tests.support.carrying import backups, odd_trials, plain, plain_study, simple_backup
from tests.support.studies import (
    BASELINE,
    CACHE,
    SPACE,
    Reader,
    ToySpace,
    Worker,
    define,
    objective,
    storage_settings,
    value_at,
    work_on,
    write_checkpoint,
)


class FittingToySpace(ToySpace):
    """The toy space, which tells what fits it."""

    def convert(self, params: dict[str, Any]) -> tuple[dict[str, Any], str]:
        return ({}, f"x is above {self.high}") if params["x"] > self.high else (dict(params), "")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[StudyStorage]:
    opened = open_storage(storage_settings(f"sqlite:///{tmp_path}/other.db"), tmp_path, create=True)
    yield opened
    opened.close()


def by_optuna(name: str, url: str) -> optuna.Study:
    """Open a study as Optuna does."""
    return optuna.load_study(study_name=name, storage=url.replace("postgresql://", "postgresql+psycopg2://"))


def carried(study: str, source: StudyStorage, target: StudyStorage, name: str | None = None) -> Backup:
    """Carry a study by a file."""
    backup = decode(encode(read_backup(source, study)))
    restore_backup(target, backup, name or study)
    return backup


def test_a_study_is_the_same_after_the_way_there_and_back(
    storage: StudyStorage, sqlite: StudyStorage, url: str, tmp_path: Path
) -> None:
    study = define(sqlite)
    work_on(study, tmp_path)
    odd_trials(study)
    before = plain_study(study)
    first = carried("toy", sqlite, storage)
    assert plain_study(load_study(storage, "toy")) == before
    assert [plain(trial) for trial in by_optuna("toy", url).trials] == before["trials"]
    restore_backup(sqlite, read_backup(storage, "toy"), "back")
    back = plain_study(load_study(sqlite, "back"))
    assert back["trials"] == before["trials"]
    assert repr(read_backup(sqlite, "back").trials) == repr(first.trials)


@given(backups())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_study_holds_a_database_gives_back(storage: StudyStorage, backup: Backup) -> None:
    name = new_token()
    restore_backup(storage, backup, name)
    again = read_backup(storage, name)
    stored = [part.user_attrs | part.system_attrs for part in (again, backup)]
    assert {**stored[0], "uid": ""} == {**stored[1], "uid": ""}
    assert again.directions == backup.directions
    assert repr(again.trials) == repr(backup.trials)


def test_many_trials_are_restored_with_few_statements(storage: StudyStorage) -> None:
    backup = simple_backup()
    num_trials, statements = 3000, []
    first = backup.trials[0]
    for number in range(2, num_trials):
        backup.trials.append(type(first)(number, first.state, None, None, first.params, [0.5], {0: 0.5, 1: 0.5}))
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    restore_backup(storage, backup, "toy")
    assert len(statements) < num_trials / 20
    assert read_backup(storage, "toy").trials == backup.trials
    numbers = [trial.number for trial in load_study(storage, "toy").trials]
    assert numbers == [*range(num_trials)]


def test_a_restored_study_goes_on_to_its_exact_total(
    storage: StudyStorage, sqlite: StudyStorage, url: str, tmp_path: Path
) -> None:
    study = define(sqlite, num_trials=4)
    work_on(study, tmp_path / "first", num_trials=4)
    set_target(study, num_trials=8)
    carried("toy", sqlite, storage)
    before = plain_study(load_study(storage, "toy"))["trials"]
    workers = [Worker(url, tmp_path / "work", num_trials=8) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    Reader(url).check_exact(8, 4)
    assert plain_study(load_study(storage, "toy"))["trials"][:4] == before


def claim(study: optuna.Study) -> Claim:
    storage = study._storage._backend  # type: ignore[attr-defined]
    claimed = claim_trial(
        storage, study._study_id, token=new_token(), worker_id="host|b|n|1|1", max_attempts=3, max_failed=10
    )
    assert isinstance(claimed, Claim)
    return claimed


@pytest.mark.parametrize(("name", "goes_on"), [("toy", True), ("copy", False)])
def test_a_running_trial_is_taken_over_after_a_restore(
    storage: StudyStorage,
    sqlite: StudyStorage,
    tmp_path: Path,
    name: str,
    goes_on: bool,  # noqa: FBT001
) -> None:
    first = define(sqlite, num_trials=1)
    claimed = claim(first)
    sqlite.hold(claimed.lease)
    folder = tmp_path / "work" / "checkpoints" / "toy" / "trial-0" / "attempt-1"
    _, params = sample_params(first, claimed.lease, SPACE.suggest, StudySettings(name="toy", max_epochs=4), seed=42)
    for epoch in range(2):
        path = write_checkpoint(folder, epoch, params)
        write = TrialWrite(steps={epoch: value_at(params, epoch)})
        relative = path.relative_to(tmp_path / "work").as_posix()
        sqlite.write_trial(claimed.lease, write, checkpoint=relative, num_epochs=epoch + 1)
    carried("toy", sqlite, storage, name)
    again = define(storage, name=name, num_trials=1)
    assert work_on(again, tmp_path / "work", name=name, num_trials=1).num_finished == 1
    computed = (tmp_path / "work" / "computed.log").read_text().split("\n")[:-1]
    assert computed == [f"0 {epoch}" for epoch in range(2 if goes_on else 0, 4)]
    done = again.trials[0]
    assert done.state is TrialState.COMPLETE
    assert done.user_attrs["attempt"] == 2
    assert done.intermediate_values == {epoch: value_at(params, epoch) for epoch in range(4)}


def test_a_backup_shows_one_moment_while_workers_run(storage: StudyStorage, url: str, tmp_path: Path) -> None:
    study = define(storage, num_trials=25)
    worker = Worker(url, tmp_path / "work", num_trials=25, epoch_s=0.01)
    seen = []
    while worker.process.is_alive():
        seen.append(read_backup(storage, "toy"))
        time.sleep(0.02)
    assert worker.wait() == 0
    assert len(seen) > 3
    for backup in seen:
        assert [trial.number for trial in backup.trials] == [*range(len(backup.trials))]
        for trial in backup.trials:
            finished = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            assert finished == (trial.datetime_complete is not None)
            assert finished == bool(trial.values)
            assert finished == ("epochs" in trial.user_attrs)
            assert [*trial.steps] == [*range(len(trial.steps))]
            assert (trial.lease is not None) == (trial.state is TrialState.RUNNING)
            if trial.state is TrialState.COMPLETE:
                assert len(trial.steps) == 4
    assert len({len(backup.trials) for backup in seen}) > 2
    assert len(study.trials) == 25


def outcome_of(operation: Any) -> str:
    try:
        operation()
    except CsiJobError as error:
        return str(error)
    return "done"


def test_of_many_restores_at_once_one_goes_through(storage: StudyStorage) -> None:
    with ThreadPoolExecutor(6) as pool:
        told = [*pool.map(lambda _: outcome_of(lambda: restore_backup(storage, simple_backup(), "toy")), range(6))]
    assert told.count("done") == 1
    assert all("already" in message for message in told if message != "done")
    assert len(load_study(storage, "toy").trials) == 2


def test_many_migrations_at_once_carry_each_trial_once(storage: StudyStorage, url: str, tmp_path: Path) -> None:
    old = define(storage)
    work_on(old, tmp_path)
    space = FittingToySpace(2.0)

    def migrate(_: int) -> int:
        given = StudySettings(name="new", num_trials=8, max_epochs=4)
        return migrate_study(storage, "toy", given, space=space, baseline=BASELINE, cache=CACHE).num_carried

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(migrate, range(6))) == [0, 0, 0, 0, 0, 5]
    new = by_optuna("new", url)
    assert [trial.number for trial in new.trials] == [*range(5)]
    assert [trial.params for trial in new.trials] == [trial.params for trial in old.trials]
    assert {trial.distributions["x"].high for trial in new.trials} == {2.0}
    assert new.best_value == old.best_value


def test_a_worker_goes_on_with_a_migrated_study_to_its_exact_total(storage: StudyStorage, tmp_path: Path) -> None:
    old = define(storage)
    work_on(old, tmp_path)
    high = sorted(trial.params["x"] for trial in old.trials)[3]
    space = FittingToySpace(high)
    given = StudySettings(name="new", max_epochs=4, num_startup_trials=3)
    done = migrate_study(storage, "toy", given, space=space, baseline=BASELINE, cache=CACHE, num_trials=9)
    assert (done.num_carried, done.reasons, done.target) == (4, ((f"x is above {high}", 1),), 9)
    new = load_study(storage, "new")
    before = [plain(trial) for trial in new.trials[:4]]
    run_worker(
        new, objective, suggest=space.suggest, settings=given, work=tmp_path,
        options=WorkerOptions(own_process=False),
    )  # fmt: skip
    finished = [trial for trial in new.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == len(new.trials) == 9
    assert [plain(trial) for trial in new.trials[:4]] == before
    with pytest.raises(ConfigurationError, match="--n-trials 9"):
        migrate_study(storage, "toy", given, space=space, baseline=BASELINE, cache=CACHE, num_trials=5)
