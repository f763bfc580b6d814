"""Studies copied between SQLite and PostgreSQL and migrated between spaces: beside workers, under kills, repeatedly."""

import math
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError, CsiJobError, StopRequestedError
from csi_job.storage.attributes import PAUSED
from csi_job.storage.lease import new_token
from csi_job.storage.storage import open_storage
from csi_job.storage.tables import LEASES
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.definition import Definition, load_study
from csi_job.study.sampling import sample_params
from csi_job.study.settings import StudySettings
from csi_job.study.status import study_status
from csi_job.study.studies import delete_study
from csi_job.transfer import copy
from csi_job.transfer.copy import copy_study, read_study_rows, summarize_copy, write_study_rows
from csi_job.transfer.migrate import migrate_study
from tests.support.carrying import (
    DISTRIBUTIONS,
    odd_trials,
    plain,
    plain_study,
    simple_study,
    studies,
    trial_rows,
    without_ids,
)
from tests.support.reader import Reader
from tests.support.studies import (
    BASELINE,
    CACHE_KEY,
    SPACE,
    Worker,
    counted,
    define,
    leased,
    objective,
    storage_settings,
    toy_space,
    value_at,
    work_on,
    write_checkpoint,
)


@pytest.fixture
def sqlite(tmp_path):
    opened = open_storage(storage_settings(f"sqlite:///{tmp_path}/other.db"), tmp_path, create=True)
    yield opened
    opened.close()


def by_optuna(name, url):
    """Open a study as Optuna does."""
    return optuna.load_study(study_name=name, storage=url.replace("postgresql://", "postgresql+psycopg2://"))


def test_a_study_is_the_same_after_the_way_there_and_back(storage, sqlite, url, tmp_path):
    study = define(sqlite)
    work_on(study, tmp_path)
    odd_trials(study)
    before = plain_study(study)
    assert plain_study(copy_study(sqlite, "toy", storage)) == before
    assert [plain(trial) for trial in by_optuna("toy", url).trials] == before["trials"]
    back = plain_study(copy_study(storage, "toy", sqlite, "back"))
    assert back["trials"] == before["trials"]
    assert repr(without_ids(read_study_rows(sqlite, "back"))) == repr(without_ids(read_study_rows(sqlite, "toy")))


@given(studies())
@settings(max_examples=15)
def test_whatever_a_study_holds_arrives(storage, sqlite, rows):
    name = new_token()
    write_study_rows(sqlite, rows, name)
    stored = read_study_rows(sqlite, name)
    assert repr(without_ids(stored)) == repr(without_ids(rows))
    copy_study(sqlite, name, storage)
    assert repr(without_ids(read_study_rows(storage, name))) == repr(without_ids(rows))


def test_a_lost_reply_to_commit_copies_nothing_twice(storage, url, monkeypatch):
    """SQLite loses no reply, but reuses the ids of what it did not store: there, a study that is found is another's."""
    operations = []
    monkeypatch.setattr(storage, "write", operations.append)
    write_study_rows(storage, simple_study(), "toy")
    monkeypatch.undo()
    storage.write(operations[0])
    with pytest.raises(ConfigurationError, match="already") if url.startswith("sqlite") else nullcontext():
        storage.write(operations[0])
    assert len(load_study(storage, "toy").trials) == 2
    with pytest.raises(ConfigurationError, match="already"):
        write_study_rows(storage, simple_study(), "toy")


def test_many_trials_are_copied_with_few_statements(storage, sqlite):
    rows = simple_study()
    num_trials, params = 3000, {"a": (0.5, DISTRIBUTIONS[0])}
    for number in range(2, num_trials):
        rows.trials.append(trial_rows(number, TrialState.COMPLETE, params=params, values=[0.5], steps={0: 0.5, 1: 0.5}))
    write_study_rows(sqlite, rows, "toy")
    with counted(storage.engine) as statements:
        study = copy_study(sqlite, "toy", storage)
    assert len(statements) < num_trials / 20
    assert without_ids(read_study_rows(storage, "toy")) == without_ids(rows)
    assert [trial.number for trial in study.trials] == [*range(num_trials)]


@pytest.mark.parametrize(("name", "first_epoch"), [("toy", 2), ("copy", 0)])
def test_a_running_trial_is_resumed_in_the_copy(storage, sqlite, tmp_path, name, first_epoch):
    first = define(sqlite, num_trials=1)
    lease = leased(first, worker_id="host|b|n|1|1")
    sqlite.hold(lease)
    folder = tmp_path / "work" / "checkpoints" / "toy" / "trial-0" / "attempt-1"
    _, params = sample_params(first, lease, SPACE.suggest, StudySettings(name="toy", max_epochs=4), seed=42)
    for epoch in range(2):
        path = write_checkpoint(folder, epoch, params.unknown_weight)
        write = TrialWrite(steps={epoch: value_at(params.unknown_weight, epoch)})
        relative = path.relative_to(tmp_path / "work").as_posix()
        sqlite.write_trial(lease, write, checkpoint=relative, num_epochs=epoch + 1)
    copy_study(sqlite, "toy", storage, name)
    again = define(storage, name=name, num_trials=1)
    assert work_on(again, tmp_path / "work", name=name, num_trials=1).num_finished == 1
    computed = (tmp_path / "work" / "computed.log").read_text().split("\n")[:-1]
    assert computed == [f"0 {epoch}" for epoch in range(first_epoch, 4)]
    done = again.trials[0]
    assert done.state is TrialState.COMPLETE
    assert done.user_attrs["attempt"] == 2
    assert done.intermediate_values == {epoch: value_at(params.unknown_weight, epoch) for epoch in range(4)}


def test_a_copy_shows_one_moment_while_workers_run(storage, sqlite, url, tmp_path):
    study, num_trials = define(storage, num_trials=12), 12
    turn, begun = threading.Semaphore(0), threading.Semaphore(0)

    def in_turn(running):
        assert turn.acquire(timeout=120)
        begun.release()
        return objective(running)

    def run():
        own = open_storage(storage_settings(url), tmp_path, create=True)
        work_on(load_study(own, "toy"), tmp_path / "work", in_turn, num_trials=num_trials)
        own.close()

    copies = [f"copy-{number}" for number in range(num_trials)]
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(run)
        for name in copies:
            turn.release()
            copy_study(storage, "toy", sqlite, name)
            assert begun.acquire(timeout=120)
        worker.result()
    for name in copies:
        trials = load_study(sqlite, name).trials
        assert [trial.number for trial in trials] == [*range(len(trials))]
        leases = [LEASES in trial.parts for trial in read_study_rows(sqlite, name).trials]
        for trial, has_lease in zip(trials, leases, strict=True):
            finished = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            assert finished == (trial.datetime_complete is not None)
            assert finished == bool(trial.values)
            assert finished == ("epochs" in trial.user_attrs)
            assert [*trial.intermediate_values] == [*range(len(trial.intermediate_values))]
            assert has_lease == (trial.state is TrialState.RUNNING)
            if trial.state is TrialState.COMPLETE:
                assert len(trial.intermediate_values) == 4
    assert len({len(load_study(sqlite, name).trials) for name in copies}) > 2
    assert len(study.trials) == num_trials


def test_a_trial_that_comes_while_a_study_is_read_is_not_in_the_copy(storage, monkeypatch):
    study, read = define(storage), copy.read_trial_rows

    def interrupted(*args):
        study.enqueue_trial({})
        return read(*args)

    monkeypatch.setattr(copy, "read_trial_rows", interrupted)
    assert len(read_study_rows(storage, "toy").trials) == 1
    assert len(study.trials) == 2


def test_paused_trials_stay_paused_in_the_copy(storage, sqlite, tmp_path):
    given = {"pruner": "asha", "min_resource": 1, "num_trials": 4}
    study = define(sqlite, **given)
    write_trial = sqlite.write_trial

    def ends_after_two(lease, write, *args, **changes):
        write_trial(lease, write, *args, **changes)
        if PAUSED in write.user_attrs and lease.number == 1:
            raise StopRequestedError(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "write_trial", ends_after_two)
        with pytest.raises(StopRequestedError):
            work_on(study, tmp_path, **given)
    copied = copy_study(sqlite, "toy", storage)
    assert summarize_copy(copied, "toy") == [f"study toy copied to {storage.address}: 2 trials (2 paused)"]
    assert study_status(copied).num_paused == 2
    work_on(define(storage, **given), tmp_path, **given)
    assert study_status(copied).is_finished
    computed = (tmp_path / "computed.log").read_text().split("\n")[:-1]
    assert len(computed) == len({*computed})


def outcome_of(operation):
    try:
        operation()
    except CsiJobError as error:
        return str(error)
    return "done"


def test_of_many_copies_at_once_one_succeeds(storage, sqlite):
    write_study_rows(sqlite, simple_study(), "toy")
    with ThreadPoolExecutor(6) as pool:
        outcomes = [*pool.map(lambda _: outcome_of(lambda: copy_study(sqlite, "toy", storage)), range(6))]
    assert outcomes.count("done") == 1
    assert all("already" in outcome for outcome in outcomes if outcome != "done")
    assert len(load_study(storage, "toy").trials) == 2


NUM_TRIALS_UNDER_KILLS = 700


def copy_to_be_killed(arguments):
    """Copy a study in a process that kills itself before its nth statement or COMMIT, or is killed from outside."""
    urls = [storage_settings(arguments[end]) for end in ("from", "to")]
    storages = [open_storage(settings, Path(arguments["work"]), create=True) for settings in urls]
    num_left = arguments.get("num_statements", -1)

    def count(*_):
        nonlocal num_left
        if num_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        num_left -= 1

    for event in ("before_cursor_execute", "commit"):
        sa.event.listen(storages[1].engine, event, count)
    sys.stderr.write("copying\n")
    copy_study(storages[0], "toy", storages[1])


@pytest.fixture
def large(sqlite):
    """A study that takes several rounds of inserts, with a running, a waiting and a pruned trial."""
    rows = simple_study()
    states = {2: TrialState.WAITING, 3: TrialState.PRUNED, NUM_TRIALS_UNDER_KILLS - 1: TrialState.RUNNING}
    for number in range(2, NUM_TRIALS_UNDER_KILLS):
        state = states.get(number, TrialState.COMPLETE)
        parts = {"params": {"a": (0.5, DISTRIBUTIONS[0])}, "values": [0.5], "steps": {0: 0.5, 1: math.nan}}
        rows.trials.append(trial_rows(number, state, **parts, user_attrs={"epochs": 2}))
    write_study_rows(sqlite, rows, "toy")
    return rows


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_killed_copy_leaves_nothing_and_can_be_repeated(storage, sqlite, large, url, tmp_path, way):
    urls = {"from": f"sqlite:///{tmp_path}/other.db", "to": url}
    source, target = sqlite, storage
    if way == "back":
        copy_study(sqlite, "toy", storage)
        (tmp_path / "back").mkdir()
        urls = {"from": url, "to": f"sqlite:///{tmp_path}/back/studies.db"}
        source, target = storage, open_storage(storage_settings(urls["to"]), tmp_path, create=True)
    with counted(target.engine) as statements:
        copy_study(source, "toy", target, "measure")
    chance = random.Random(7)
    last_insert = max(index for index, statement in enumerate(statements) if statement.startswith("INSERT"))
    points = [*chance.sample(range(last_insert), 3), last_insert]  # no uid is changed in `toy`: this one is the COMMIT
    begin = time.monotonic()
    copy_study(source, "toy", target, "measure again")
    duration_s = time.monotonic() - begin
    kills = [{"num_statements": point} for point in points]
    kills += [{"after_s": chance.uniform(0, duration_s)} for _ in range(4)]
    num_killed = 0
    for kill in kills:
        worker = Worker("", tmp_path / "work", run=copy_to_be_killed, **urls, **kill)
        if "after_s" in kill:
            while worker.process.is_alive() and "copying" not in worker.log():
                time.sleep(0.002)
            time.sleep(kill["after_s"])
            worker.send_signal(signal.SIGKILL)
        code = worker.wait()
        names = [study.study_name for study in target.get_all_studies()]
        if code == 0 or "toy" in names:  # the kill came too late: after COMMIT
            assert "after_s" in kill
            assert without_ids(read_study_rows(target, "toy")) == without_ids(large)
            delete_study(load_study(target, "toy"), tmp_path)
            continue
        assert code == -signal.SIGKILL, worker.log()
        num_killed += 1
        assert names == ["measure", "measure again"]
    assert num_killed >= len(points)
    assert Reader(urls["to"]).rows("SELECT count(*) FROM trials") == [(2 * NUM_TRIALS_UNDER_KILLS,)]
    copied = copy_study(source, "toy", target)
    assert repr(without_ids(read_study_rows(target, "toy"))) == repr(without_ids(large))
    assert [plain(trial) for trial in copied.trials] == [plain(trial) for trial in load_study(source, "toy").trials]


def test_many_migrations_at_once_carry_each_trial_once(storage, url, tmp_path):
    old = define(storage)
    work_on(old, tmp_path)
    space = toy_space(2.0)

    def migrate(_):
        given = StudySettings(name="new", num_trials=8, max_epochs=4)
        return migrate_study(storage, "toy", Definition.of(given, space, BASELINE, cache_key=CACHE_KEY)).num_migrated

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(migrate, range(6))) == [0, 0, 0, 0, 0, 5]
    new = by_optuna("new", url)
    assert [trial.number for trial in new.trials] == [*range(5)]
    assert [trial.params for trial in new.trials] == [trial.params for trial in old.trials]
    assert {trial.distributions["unknown_weight"].high for trial in new.trials} == {2.0}
    assert new.best_value == old.best_value
