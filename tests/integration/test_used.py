"""What searching has used, as the controller keeps it with a study on a real database."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_job.cluster.budget import Use
from csi_job.cluster.study_watch import StudyWatch
from csi_job.config import Settings
from csi_job.storage.storage import StudyStorage
from csi_job.study.settings import StudySettings
from tests.support.studies import define, storage_settings


def watch(url: str, work: Path, name: str = "toy") -> StudyWatch:
    return StudyWatch(Settings(work=work, storage=storage_settings(url), study=StudySettings(name=name)))


def test_use_adds_up_over_controllers_and_belongs_to_one_study(storage: StudyStorage, url: str, tmp_path: Path) -> None:
    define(storage)
    define(storage, name="other")
    controller = watch(url, tmp_path)
    assert controller.spend(Use()) == Use()
    assert controller.spend(Use(10, 40)) == Use(10, 40)
    assert watch(url, tmp_path).spend(Use(1, 2)) == Use(11, 42)
    assert controller.spend(Use()) == Use(11, 42)
    assert watch(url, tmp_path, "other").spend(Use()) == Use()


def test_a_study_that_was_deleted_is_said_to_be_gone_and_asked_for_again(
    storage: StudyStorage, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = define(storage)
    controller = watch(url, tmp_path)
    assert controller.look() is not None
    storage.delete_study(study._study_id)
    assert (controller.look(), controller.spend(Use(1, 1))) == (None, None)
    assert any("the study can't be looked at" in line for line in caplog.messages)
    define(storage)
    assert controller.spend(Use(2, 3)) == Use(2, 3)


def test_a_database_that_is_away_answers_nothing_and_stops_nobody(tmp_path: Path) -> None:
    away = watch("postgresql+psycopg2://csi@127.0.0.1:1/csi", tmp_path)
    assert (away.look(), away.spend(Use(1, 1))) == (None, None)
