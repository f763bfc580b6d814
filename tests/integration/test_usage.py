"""The usage of a search, stored with its study in a real database."""

from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from csi_job.cluster import study_watch
from csi_job.cluster.budget import Usage
from csi_job.cluster.study_watch import StudyWatch
from csi_job.config import Settings
from csi_job.errors import NoStudyError, StorageUnavailableError
from csi_job.storage.attributes import USED
from csi_job.study.settings import StudySettings
from tests.support.processes import wait_until
from tests.support.studies import define, storage_settings


def watch(url, work, name="toy"):
    return StudyWatch(Settings(work=work, storage=storage_settings(url), study=StudySettings(name=name)))


def test_usage_adds_up_over_controllers_per_study(storage, url, tmp_path):
    study = define(storage)
    define(storage, name="other").set_user_attr(USED, {"seconds": 5, "only_a_newer_version_knows": "this"})
    controller = watch(url, tmp_path)
    metered_s = list[float]()

    def used(seconds, gpu_seconds, until_s):
        return lambda since_s: metered_s.append(since_s) or Usage(seconds, gpu_seconds, until_s)

    assert controller.add_usage(used(10, 40, 100)) == Usage(10, 40, 100)
    assert watch(url, tmp_path).add_usage(used(1, 2, 200)) == Usage(11, 42, 200)
    assert controller.add_usage(used(0, 0, 300)) == Usage(11, 42, 300)
    assert watch(url, tmp_path, "other").add_usage(used(0, 0, 400)) == Usage(5, 0, 400)
    assert metered_s == [0, 100, 200, 0]
    # All that an earlier controller takes, as after `helm rollback`.
    assert storage.get_study_user_attrs(study._study_id)[USED] == {"seconds": 11, "gpu_seconds": 42}


def test_the_end_of_a_search_is_kept_with_its_study_until_it_is_resumed(storage, url, tmp_path):
    study = define(storage)
    for ended in (True, True, False, True):
        assert watch(url, tmp_path).end_search(ended=ended)
        assert study.user_attrs["ended"] is ended


def test_a_deleted_study_is_reported_and_opened_again(storage, url, tmp_path, caplog):
    study = define(storage)
    controller = watch(url, tmp_path)
    assert controller.status() is not None
    storage.delete_study(study._study_id)
    assert controller.end_search(ended=False)
    assert (controller.status(), controller.add_usage(lambda _: Usage(1, 1))) == (None, None)
    assert any("the study is unavailable" in line for line in caplog.messages)
    define(storage)
    wait_until(lambda: controller.add_usage(lambda _: Usage(2, 3)) == Usage(2, 3))  # soon, where a try took long


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_asking_for_a_study_that_does_not_exist_leaves_no_connection_open(storage, url, tmp_path):
    controller = watch(url, tmp_path)
    assert [controller.status() for _ in range(9)] == [None] * 9
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    # Its own, and no other: a session ends a little after it was closed.
    wait_until(lambda: storage.read(lambda connection: connection.execute(query).scalar_one()) == 1, limit_s=20)


def test_half_of_the_time_at_most_is_spent_on_a_database_that_does_not_answer(tmp_path, monkeypatch):
    now_s, asked_s = 100.0, []

    def ask():
        nonlocal now_s
        asked_s.append(now_s)
        now_s += 10
        raise StorageUnavailableError("no answer")

    silent = watch("postgresql+psycopg2://csi@127.0.0.1:1/csi", tmp_path)
    monkeypatch.setattr(silent, "_open", ask)
    monkeypatch.setattr(study_watch, "time", SimpleNamespace(monotonic=lambda: now_s))
    for _ in range(11):
        assert silent.status() is None
        now_s += 1
    assert asked_s == [100, 120]


def test_a_study_that_was_missing_may_exist_while_a_slow_database_is_not_asked(tmp_path, monkeypatch):
    """Otherwise a cache stage that has just created it would run again."""
    now_s = 100.0

    def ask():
        nonlocal now_s
        now_s += 10
        raise NoStudyError("there is no study")

    slow = watch("postgresql+psycopg2://csi@127.0.0.1:1/csi", tmp_path)
    monkeypatch.setattr(slow, "_open", ask)
    monkeypatch.setattr(study_watch, "time", SimpleNamespace(monotonic=lambda: now_s))
    assert [(slow.status(), slow.is_missing) for _ in range(2)] == [(None, True), (None, False)]


def test_an_unreachable_database_gives_no_answer_and_no_error(tmp_path):
    away = watch("postgresql+psycopg2://csi@127.0.0.1:1/csi", tmp_path)
    assert (away.end_search(ended=False), away.status(), away.add_usage(lambda _: Usage(1, 1))) == (False, None, None)
