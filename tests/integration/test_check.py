"""The check of an installation on a real PostgreSQL."""

import pytest

from csi_job.cluster.pod_check import check_database, check_study
from csi_job.config import Settings, load_settings
from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import FINGERPRINT
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.study.definition import define_study
from csi_job.study_settings import definition_of
from tests.support.studies import define, storage_settings


def settings_for(url, work, study):
    return Settings.model_validate({"work": work, "storage": {"url": url}, "study": {"name": study}})


def test_a_database_with_too_few_connections_for_the_workers_is_named(postgres_url, tmp_path):
    settings = settings_for(postgres_url, tmp_path, "none")
    assert "for 1 worker" in check_database(settings, 1, wait_s=10)
    with pytest.raises(ConfigurationError, match=r"10000 workers need 40004; raise database.maxConnections"):
        check_database(settings, 10_000, wait_s=10)


def test_a_volume_without_the_cache_of_the_study_is_not_shared(postgres_url, tmp_path):
    storage = open_storage(storage_settings(postgres_url), tmp_path, create=True)
    study = define(storage)
    key = study.user_attrs[FINGERPRINT]["cache"]
    settings = settings_for(postgres_url, tmp_path, study.study_name)
    with pytest.raises(ConfigurationError, match=f"is not shared: it lacks the study's cache {key}"):
        check_database(settings, 1, wait_s=10)
    (tmp_path / "cache" / key).mkdir(parents=True)
    assert check_database(settings, 1, wait_s=10).startswith("database: answers")
    storage.close()


def test_other_settings_than_the_study_has_are_refused_before_the_cache_is_built(tmp_path):
    upgraded = {"work": tmp_path, "study.name": "s", "trial.class_balance": True}
    assert check_study(load_settings(upgraded, None, {})) == "study s: new"
    storage = open_storage(StorageSettings(), tmp_path, create=True)
    define_study(storage, definition_of(load_settings({"study.name": "s"}, None, {}).settings, "0" * 16))
    storage.close()
    assert check_study(load_settings({**upgraded, "trial.class_balance": False}, None, {})).startswith("study s: was")
    expected = r"^study 's' was created with other settings: trial.class_balance \(was false, now true\); restore them"
    with pytest.raises(ConfigurationError, match=expected):
        check_study(load_settings(upgraded, None, {}))
