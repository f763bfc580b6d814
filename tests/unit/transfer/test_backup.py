"""A study is restored whole, once, and under a name of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from csi_job.errors import ConfigurationError
from csi_job.storage.storage import StudyStorage
from csi_job.storage.tables import LEASES, TRIALS
from csi_job.study.definition import load_study
from csi_job.transfer.backup import count_outcomes, read_backup, restore_backup, write_backup
from csi_job.transfer.backup_file import decode
from tests.support.carrying import odd_trials, plain_study, simple_backup
from tests.support.studies import Reader, define, work_on


def test_a_restored_study_is_the_same_but_for_its_name_and_what_tracking_tells_it_by(
    storage: StudyStorage, study: optuna.Study, tmp_path: Path
) -> None:
    work_on(study, tmp_path)
    odd_trials(study)
    restore_backup(storage, read_backup(storage, "toy"), "copy")
    before, after = plain_study(study), plain_study(load_study(storage, "copy"))
    assert before["user_attrs"].pop("uid") != after["user_attrs"].pop("uid")
    assert before == after
    assert (
        after["trials"]
        == plain_study(optuna.load_study(study_name="copy", storage=f"sqlite:///{tmp_path}/studies.db"))["trials"]
    )


def test_a_name_that_is_taken_or_illegal_is_refused_and_nothing_is_changed(
    storage: StudyStorage, study: optuna.Study
) -> None:
    backup, before = read_backup(storage, "toy"), plain_study(study)
    with pytest.raises(ConfigurationError, match="--study-name NEW"):
        restore_backup(storage, backup, "toy")
    with pytest.raises(ConfigurationError, match="cannot have this name"):
        restore_backup(storage, backup, "a/b")
    assert [found.study_name for found in storage.get_all_studies()] == ["toy"]
    assert plain_study(study) == before


def test_a_part_that_the_database_does_not_take_leaves_nothing(storage: StudyStorage, tmp_path: Path) -> None:
    backup = simple_backup()
    backup.trials[1].steps[2**70] = 0.5
    with pytest.raises(ConfigurationError, match="nothing was restored"):
        restore_backup(storage, backup, "toy")
    assert storage.get_all_studies() == []
    assert Reader(f"sqlite:///{tmp_path}/studies.db").rows("SELECT count(*) FROM trials") == [(0,)]


def test_an_answer_to_commit_that_was_lost_restores_nothing_twice(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = []
    monkeypatch.setattr(storage, "write", operations.append)
    restore_backup(storage, simple_backup(), "toy")
    monkeypatch.undo()
    storage.write(operations[0])
    storage.write(operations[0])
    assert len(load_study(storage, "toy").trials) == 2
    with pytest.raises(ConfigurationError, match="already"):
        restore_backup(storage, simple_backup(), "toy")


def test_a_running_trial_is_given_back_whatever_a_deleted_trial_left(storage: StudyStorage) -> None:
    stale = {
        "token": "x", "owner": "x", "attempt": 9, "renewed_at_s": 1e12, "lease_s": 60.0, "num_epochs": 0,
        "num_lost": 9, "checkpoint": "x",
    }  # fmt: skip
    with storage.engine.begin() as connection:
        connection.execute(sa.insert(LEASES), [{"trial_id": trial_id, **stale} for trial_id in (1, 2, 3)])
    backup = simple_backup()
    backup.trials.append(dataclasses.replace(backup.trials[1], number=2, lease=None))
    restore_backup(storage, backup, "toy")
    again = read_backup(storage, "toy").trials
    assert again[:2] == backup.trials[:2]
    with storage.engine.connect() as connection:
        rows = connection.execute(sa.select(LEASES).where(LEASES.c.trial_id > 1)).all()
    assert [(row.attempt, row.num_lost, row.renewed_at_s, row.checkpoint) for row in rows] == [
        (2, 1, 0.0, "checkpoints/epoch.pt"),
        (1, 0, 0.0, None),
    ]
    assert len({row.token for row in rows}) == 2


def test_a_name_that_ends_in_gz_is_compressed(tmp_path: Path) -> None:
    backup = simple_backup()
    write_backup(backup, tmp_path / "b.json")
    write_backup(backup, tmp_path / "b.json.gz")
    plain, packed = (tmp_path / "b.json").read_bytes(), (tmp_path / "b.json.gz").read_bytes()
    assert plain.startswith(b"{")
    assert packed.startswith(b"\x1f\x8b")
    assert decode(plain) == decode(packed) == backup


def test_a_study_that_is_not_there_is_refused_with_those_that_are(storage: StudyStorage, study: optuna.Study) -> None:
    with pytest.raises(ConfigurationError, match=f"allowed: {study.study_name}"):
        read_backup(storage, "none")


def test_outcomes_are_counted(storage: StudyStorage) -> None:
    define(storage)
    assert count_outcomes(read_backup(storage, "toy")) == [("waiting", 1)]
    assert count_outcomes(simple_backup()) == [("complete", 1), ("running", 1)]


def test_a_study_from_which_trials_were_cut_is_refused_before_a_file_is_made_that_cannot_be_restored(
    storage: StudyStorage, study: optuna.Study, tmp_path: Path
) -> None:
    work_on(study, tmp_path)
    with storage.engine.begin() as connection:
        connection.execute(sa.update(TRIALS).where(TRIALS.c.number == 2).values(number=7))
    with pytest.raises(ConfigurationError, match="numbers have gaps"):
        read_backup(storage, "toy")
