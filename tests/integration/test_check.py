"""The check of an installation on a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_job.cluster.pod_check import check_database
from csi_job.config import Settings
from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import FINGERPRINT
from csi_job.storage.storage import open_storage
from tests.support.studies import define, storage_settings


def settings_for(url: str, work: Path, study: str) -> Settings:
    return Settings.model_validate({"work": work, "storage": {"url": url}, "study": {"name": study}})


def test_a_database_with_too_few_connections_for_the_pods_is_named(postgres_url: str, tmp_path: Path) -> None:
    settings = settings_for(postgres_url, tmp_path, "none")
    assert "1 pods" in check_database(settings, 1, wait_s=10)
    with pytest.raises(ConfigurationError, match=r"10000 pods need 40004; raise database.maxConnections"):
        check_database(settings, 10_000, wait_s=10)


def test_a_volume_without_the_cache_of_the_study_is_not_shared(postgres_url: str, tmp_path: Path) -> None:
    storage = open_storage(storage_settings(postgres_url), tmp_path, create=True)
    study = define(storage)
    key = study.user_attrs[FINGERPRINT]["cache"]
    settings = settings_for(postgres_url, tmp_path, study.study_name)
    with pytest.raises(ConfigurationError, match=f"is not shared: it lacks the study's cache {key}"):
        check_database(settings, 1, wait_s=10)
    (tmp_path / "cache" / key).mkdir(parents=True)
    assert check_database(settings, 1, wait_s=10).startswith("database: answers")
    storage.close()
