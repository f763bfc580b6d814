import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError
from csi_job.storage.tables import LEASES, TRIALS
from csi_job.transfer.copy import copy_study, read_study_rows, write_study_rows
from tests.support.carrying import odd_trials, plain_study, simple_study, trial_rows, without_ids
from tests.support.reader import Reader
from tests.support.studies import work_on


def test_a_renamed_copy_differs_in_name_and_uid_only(storage, study, tmp_path):
    work_on(study, tmp_path)
    odd_trials(study)
    copied = copy_study(storage, "toy", storage, "copy")
    before, after = plain_study(study), plain_study(copied)
    assert before["user_attrs"].pop("uid") != after["user_attrs"].pop("uid")
    assert before == after
    assert (
        after["trials"]
        == plain_study(optuna.load_study(study_name="copy", storage=f"sqlite:///{tmp_path}/studies.db"))["trials"]
    )
    assert without_ids(read_study_rows(storage, "copy")) == without_ids(read_study_rows(storage, "toy"))


def test_a_name_that_is_taken_illegal_or_of_no_study_is_refused_and_nothing_changes(storage, study):
    before = plain_study(study)
    with pytest.raises(ConfigurationError, match="--as NEW"):
        copy_study(storage, "toy", storage)
    with pytest.raises(ConfigurationError, match="cannot have this name"):
        copy_study(storage, "toy", storage, "a/b")
    with pytest.raises(ConfigurationError, match="allowed: toy"):
        copy_study(storage, "none", storage, "new")
    assert [found.study_name for found in storage.get_all_studies()] == ["toy"]
    assert plain_study(study) == before


def test_a_part_that_the_database_cannot_store_leaves_nothing(storage, tmp_path):
    rows = simple_study()
    rows.trials[1].parts |= trial_rows(1, TrialState.RUNNING, steps={2**70: 0.5}).parts
    with pytest.raises(ConfigurationError, match="nothing was copied"):
        write_study_rows(storage, rows, "toy")
    assert storage.get_all_studies() == []
    assert Reader(f"sqlite:///{tmp_path}/studies.db").rows("SELECT count(*) FROM trials") == [(0,)]


def test_a_running_trial_is_released_whatever_a_deleted_trial_left(storage):
    stale = {
        "token": "x", "owner": "x", "attempt": 9, "renewed_at_s": 1e12, "lease_s": 60.0, "num_epochs": 0,
        "num_lost": 9, "checkpoint": "x",
    }  # fmt: skip
    with storage.engine.begin() as connection:
        connection.execute(sa.insert(LEASES), [{"trial_id": trial_id, **stale} for trial_id in (1, 2, 3, 4)])
    rows = simple_study()
    second = rows.trials[1]
    rows.trials.append(trial_rows(2, second.own["state"], second.own["datetime_start"], lease=(1, 0, 0, None)))
    rows.trials.append(trial_rows(3, second.own["state"], second.own["datetime_start"]))
    write_study_rows(storage, rows, "toy")
    assert without_ids(read_study_rows(storage, "toy")) == without_ids(rows)
    with storage.engine.connect() as connection:
        leases = connection.execute(sa.select(LEASES).order_by(LEASES.c.trial_id)).all()
    assert [(row.trial_id, row.attempt, row.num_lost, row.renewed_at_s, row.checkpoint) for row in leases] == [
        (2, 2, 1, 0.0, "checkpoints/epoch.pt"),
        (3, 1, 0, 0.0, None),
    ]
    assert len({row.token for row in leases} - {"x", "t"}) == 2


def test_a_study_that_lost_trials_is_refused(storage, study, tmp_path):
    work_on(study, tmp_path)
    with storage.engine.begin() as connection:
        connection.execute(sa.update(TRIALS).where(TRIALS.c.number == 2).values(number=7))
    with pytest.raises(ConfigurationError, match="have gaps"):
        copy_study(storage, "toy", storage, "new")
