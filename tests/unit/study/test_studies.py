import sqlite3
from contextlib import closing

import optuna
import pytest
import sqlalchemy as sa

from csi_job.errors import ConfigurationError, NoStudyError
from csi_job.storage.attributes import FIXED_PARAMS, UID, uid_of
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.storage.tables import HEARTBEATS
from csi_job.study.attempts import attempt_name
from csi_job.study.confirmation import open_confirmation
from csi_job.study.definition import load_study
from csi_job.study.studies import claim_results, delete_study, enqueue_trial, list_studies
from csi_job.work_folder import CONFIRMATION, WorkFolder
from tests.support.reader import Reader, check_exact
from tests.support.studies import SPACE, define, storage_settings, study_counts, toy_space, work_on, write_checkpoint


def test_studies_are_listed_with_their_counts(study, storage, tmp_path):
    work_on(study, tmp_path)
    define(storage, name="second", objective="f1-and-cost", num_trials=9)
    optuna.create_study(storage=storage, study_name="other").set_user_attr("target", "text")
    first, second, other = list_studies(storage)
    assert (first.name, first.objective) == ("toy", "f1")
    assert (first.counts.num_finished, first.counts.target) == (5, 5)
    assert (second.counts.num_waiting, second.counts.num_free) == (1, 8)
    assert other.counts is None


def test_a_deleted_study_leaves_no_row_and_no_checkpoint(storage, tmp_path):
    keep, gone = define(storage, name="keep"), define(storage, name="gone")
    for study in (keep, gone):
        work_on(study, tmp_path, name=study.study_name)
        for name in (study.study_name, study.study_name + CONFIRMATION):
            write_checkpoint(WorkFolder(tmp_path).trial_checkpoints(name, 0) / "attempt-1", 0, 0.5)
    open_confirmation(gone)
    heartbeats = [{"trial_id": study.trials[0]._trial_id} for study in (keep, gone)]  # as Optuna's own workers
    storage.write(lambda connection: connection.execute(sa.insert(HEARTBEATS), heartbeats) and None)
    delete_study(gone, tmp_path)
    assert [listed.name for listed in list_studies(storage)] == ["keep"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"keep"}
    reader = Reader(f"sqlite:///{tmp_path}/studies.db")
    tables = [name for (name,) in reader.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    of_trials = [table for table in tables if table.startswith("trial_") or table == "csi_job_leases"]
    for table in of_trials:
        query = f"SELECT count(*) FROM {table} WHERE trial_id NOT IN (SELECT trial_id FROM trials)"
        assert reader.rows(query) == [(0,)], table
    assert [reader.rows(f"SELECT count(*) FROM {table}") for table in ("trials", "trial_heartbeats")] == [
        [(5,)],
        [(1,)],
    ]
    assert reader.rows("PRAGMA integrity_check") == [("ok",)]
    assert keep.best_value == max(trial.value for trial in keep.trials if trial.value is not None)


def test_a_study_is_deleted_with_its_confirmation_or_not_at_all(study, storage, tmp_path):
    open_confirmation(study)
    deleted = []

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def fail_at_the_second(_connection, _cursor, statement, *_):
        if statement.startswith("DELETE FROM studies"):
            deleted.append(statement)
            if len(deleted) > 1:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        delete_study(study, tmp_path)
    assert [each.study_name for each in storage.get_all_studies()] == ["toy", "toy" + CONFIRMATION]


def test_a_deleted_study_leaves_the_checkpoints_of_one_of_its_name_in_another_database(storage, tmp_path):
    study = define(storage)
    folder = WorkFolder(tmp_path).trial_checkpoints("toy", 0)
    own, other = (
        write_checkpoint(folder / f"attempt-1-{uid}", 0, 0.5) for uid in (study.user_attrs["uid"], "5e6f7a8b")
    )
    delete_study(study, tmp_path)
    assert (own.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_study_that_another_command_deletes_first_is_refused_in_one_line(is_ours, storage, tmp_path):
    study = define(storage) if is_ours else optuna.create_study(storage=storage, study_name="toy")
    optuna.delete_study(study_name="toy", storage=f"sqlite:///{tmp_path}/studies.db")
    with pytest.raises(NoStudyError, match="deleted"):
        delete_study(study, tmp_path)


@pytest.mark.parametrize("name", [".", "..", "{data}"])
def test_a_deleted_study_of_another_program_takes_no_folder_with_it(name, storage, tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    write_checkpoint(WorkFolder(work).trial_checkpoints("keep", 0) / "attempt-1", 0, 0.5)
    write_checkpoint(data, 0, 0.5)
    other = name.format(data=data)
    study = optuna.create_study(storage=storage, study_name=other)
    before = sorted(tmp_path.rglob("*.pt"))
    delete_study(study, work)
    assert list_studies(storage) == []
    assert sorted(tmp_path.rglob("*.pt")) == before != []


def test_two_studies_of_one_name_in_two_databases_do_not_replace_each_others_results(storage, tmp_path):
    folder = WorkFolder(tmp_path)
    study = define(storage)
    with closing(open_storage(StorageSettings(), tmp_path / "other", create=True)) as elsewhere:
        namesake = define(elsewhere)
        for ours in (study, study):
            claim_results(ours, folder)
        with pytest.raises(ConfigurationError, match="another study of this name, which is in another database"):
            claim_results(namesake, folder)
        claim_results(study, folder)
    delete_study(study, tmp_path)
    claim_results(define(storage), folder)  # another uid, but nobody else's
    moved = tmp_path / "moved.db"
    with closing(sqlite3.connect(folder.database)) as connection:
        connection.execute("VACUUM INTO ?", (str(moved),))
    with closing(open_storage(storage_settings(f"sqlite:///{moved}"), tmp_path, create=False)) as elsewhere:
        claim_results(load_study(elsewhere, "toy"), folder)


def test_the_checkpoints_of_a_study_that_went_with_its_database_go_when_another_takes_its_name(tmp_path, logged):
    folder, written = WorkFolder(tmp_path), []
    others = folder.trial_checkpoints("toy", 0) / "attempt-of-another-program" / "file"
    others.parent.mkdir(parents=True)
    others.touch()
    for database, beside in ((1, "beside"), (2, ["of another program"])):
        with closing(open_storage(StorageSettings(), tmp_path, create=True)) as storage:
            study = define(storage)
            uid = uid_of(study.user_attrs)
            optuna.create_study(storage=storage, study_name=f"toy{CONFIRMATION}").set_user_attr(UID, beside)
            for name, of in (("toy", uid), (f"toy{CONFIRMATION}", beside), ("other", uid)):
                attempt = folder.trial_checkpoints(name, 0) / attempt_name(1, of)
                written.append(write_checkpoint(attempt, 0, 0.5))
            for _ in range(2):
                claim_results(study, folder)
        assert sorted(tmp_path.rglob("*.pt")) == sorted(written[2 * (database == 2) :])
        for path in tmp_path.glob("studies.db*"):
            path.unlink()
    assert logged.messages.count("removed checkpoints of an earlier study named toy, which is gone") == 1
    assert others.exists()


def test_a_study_that_optuna_deleted_leaves_nothing_in_the_way(storage, tmp_path):
    study = define(storage)
    work_on(study, tmp_path)
    optuna.delete_study(study_name="toy", storage=f"sqlite:///{tmp_path}/studies.db")
    again = define(storage)
    work_on(again, tmp_path)
    check_exact(f"sqlite:///{tmp_path}/studies.db", 5, 4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"unknown_weight": "7"}, "unknown_weight 7.0 is not between 0.0 and 1.0"),
        ({"optimizer": "adamw"}, "optimizer 'adamw' is not one of adam, sgd"),
        ({"batch_size": "64"}, "batch_size 64 is not 32, its only value"),
        ({"learning_rat": "0.1"}, "unknown hyperparameter, got 'learning_rat'; allowed: "),
    ],
)
def test_values_outside_the_space_are_not_enqueued(params, message, study):
    with pytest.raises(ConfigurationError) as caught:
        enqueue_trial(study, SPACE, params)
    assert str(caught.value).startswith(message)
    assert study_counts(study).num_waiting == 1  # the baseline


def test_another_space_than_the_studys_is_refused(study):
    with pytest.raises(ConfigurationError, match=r"space\.unknown_weight\.high"):
        enqueue_trial(study, toy_space(2.0), {"unknown_weight": 1.5})


def test_enqueued_parameters_are_tried_next(study, tmp_path):
    assert enqueue_trial(study, SPACE, {"unknown_weight": 0.125, "optimizer": "sgd"}) == 1
    work_on(study, tmp_path)
    params = study.trials[1].params
    assert (params["unknown_weight"], params["optimizer"]) == (0.125, "sgd")
    assert "patience" in params


def test_an_enqueued_parameter_whose_condition_fails_is_ignored_with_a_warning(study, caplog):
    enqueue_trial(study, SPACE, {"optimizer": "adam", "patience": 3})
    assert study.trials[1].system_attrs[FIXED_PARAMS] == {"optimizer": "adam"}
    assert "patience" in caplog.text
