import pickle
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from pydantic import SecretStr

from csi_job.errors import ConfigurationError, StorageUnavailableError
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage, storage_of
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.studies import enqueue_trial
from tests.support.studies import SPACE, counted, define, leased


def test_a_path_may_contain_any_characters(tmp_path):
    work = tmp_path / "wörk {x} 100% {SCHEMA_VERSION}"
    define(open_storage(StorageSettings(), work, create=True))
    assert (work / "studies.db").is_file()
    assert define(open_storage(StorageSettings(), work, create=False)).study_name == "toy"


def test_nothing_is_created_without_permission(tmp_path):
    with pytest.raises(ConfigurationError, match="no study yet"):
        open_storage(StorageSettings(), tmp_path / "work", create=False)
    assert not (tmp_path / "work").exists()
    (tmp_path / "studies.db").touch()
    with pytest.raises(ConfigurationError, match="there is no study in"):
        open_storage(StorageSettings(), tmp_path, create=False)
    assert (tmp_path / "studies.db").stat().st_size == 0


def test_tables_of_another_optuna_version_are_rejected_with_the_upgrade_command(storage, tmp_path):
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    for create in (True, False):
        with pytest.raises(ConfigurationError, match=r"another Optuna version.*optuna storage upgrade"):
            open_storage(StorageSettings(), tmp_path, create=create)


def test_tables_created_by_optuna_are_used(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    optuna.create_study(storage=url, study_name="plain")
    study = define(open_storage(StorageSettings(url=SecretStr(url)), tmp_path, create=True))
    assert sorted(optuna.study.get_all_study_names(url)) == ["plain", "toy"]
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]


@pytest.mark.parametrize("content", ["a label table\n" * 200, None])
def test_a_file_that_cannot_be_a_database_is_one_line(content, tmp_path):
    path = tmp_path / "studies.db"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(ConfigurationError, match="is not a file" if content is None else "cannot be used"):
        open_storage(StorageSettings(), tmp_path, create=True)


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"the database cannot be used \(Not a directory\)"):
        open_storage(StorageSettings(), tmp_path / "file" / "work", create=True)


@pytest.mark.parametrize(("has_journal", "reason"), [(True, "disk is full"), (False, "unable to open database file")])
def test_a_full_disk_at_the_start_is_waited_for_then_one_line(tmp_path, has_journal, reason):
    if not has_journal:  # for which there is no room either
        (tmp_path / "studies.db-journal").mkdir()

    def fill(connection, _):
        connection.execute("PRAGMA max_page_count = 1")

    sa.event.listen(sa.engine.Engine, "connect", fill)
    try:
        with pytest.raises(StorageUnavailableError, match=rf"studies\.db .*: .*{reason}"):
            open_storage(StorageSettings(connect_s=0), tmp_path, create=True)
    finally:
        sa.event.remove(sa.engine.Engine, "connect", fill)


def test_a_pickled_storage_opens_the_same_database(study, storage):
    storage.retry.limit_s = 7.0
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.get_all_trials(study._study_id) == storage.get_all_trials(study._study_id)
    assert (copy.lease_s, copy.retry.limit_s) == (5, 7)
    copy.close()


def test_trials_that_finish_out_of_order_are_read_again_and_no_others(study, storage):
    leases = [leased(study) for _ in range(3)]
    for lease in reversed(leases):
        storage.write_trial(lease, TrialWrite(values=[0.5], state=TrialState.COMPLETE))
        states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 3
    first, second, third = (lease.trial_id for lease in leases)
    read = storage.list_trials(study._study_id, None, {first}, second)
    assert [trial._trial_id for trial in read] == [first, third]


def test_readers_do_not_wait_for_a_writer(study, storage, tmp_path):
    writer = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert len(study.get_trials()) == 1
        assert study.user_attrs["target"] == 5
        assert [each.study_name for each in storage.get_all_studies()] == ["toy"]
    finally:
        writer.close()


def test_while_one_thread_samples_a_trial_others_are_read_and_written_as_usual(study, storage):
    lease, other = leased(study), leased(study)
    for each in (lease, other):
        storage.hold(each)

    def parts(key):
        trial = storage.get_trial(lease.trial_id)
        return [part.get(key) for part in (trial.params, trial.user_attrs, trial.system_attrs)]

    def elsewhere():
        storage.set_trial_user_attr(lease.trial_id, "elsewhere", "stored")
        return [trial.state.name for trial in storage.get_all_trials(study._study_id)], parts("elsewhere")[1]

    with ThreadPoolExecutor(1) as pool, storage.buffered_ask(lease):
        storage.get_all_trials(study._study_id)
        for key in "ab":
            storage.set_trial_param(lease.trial_id, key, 0.5, FloatDistribution(0, 1))
            storage.set_trial_user_attr(lease.trial_id, key, 1)
            storage.set_trial_system_attr(lease.trial_id, key, 2)
        assert pool.submit(elsewhere).result() == (["RUNNING", "RUNNING"], "stored")
        assert parts("elsewhere") == [None, None, None]  # this thread sees one history
        assert pool.submit(parts, "a").result() == [None, None, None]
        storage.set_trial_user_attr(other.trial_id, "other", "stored")
        assert pool.submit(storage.get_trial_user_attrs, other.trial_id).result() == {"other": "stored"}
        assert enqueue_trial(study, SPACE, {"unknown_weight": 0.25}) == 2
    assert [parts(key) for key in "ab"] == [[0.5, 1, 2]] * 2


def test_a_trial_is_sampled_from_one_read(study, storage):
    lease = leased(study)
    with counted(storage.engine) as statements, storage.buffered_ask(lease):
        for _ in range(2):
            storage.get_all_trials(study._study_id)
            storage.get_trial(lease.trial_id)
            storage.set_trial_param(lease.trial_id, "a", 0.5, FloatDistribution(0, 1))
        assert len(statements) == 2  # BEGIN, and the read


class _Full(sqlite3.Connection):
    """A file whose first COMMIT finds the disk full."""

    is_full = True

    def commit(self):
        if self.in_transaction and _Full.is_full:
            _Full.is_full = False
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        super().commit()


def test_a_trial_whose_commit_failed_is_not_taken_for_the_one_that_got_its_id(tmp_path):
    study, other = (define(open_storage(StorageSettings(), tmp_path, create=True), num_trials=3) for _ in range(2))
    storage = storage_of(study)
    storage.engine.dispose()
    sa.event.listen(storage.engine, "do_connect", lambda *given: given[3].update(factory=_Full))

    def let_the_other_in():
        if not _Full.is_full and len(other.trials) == 1:
            assert enqueue_trial(other, SPACE, {"unknown_weight": 0.25}) == 1

    with storage.retry.interrupted_by(let_the_other_in, time.sleep):
        assert enqueue_trial(study, SPACE, {"unknown_weight": 0.75}) == 2
    assert [trial.system_attrs["fixed_params"]["unknown_weight"] for trial in study.trials[1:]] == [0.25, 0.75]
