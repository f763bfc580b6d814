"""A storage on SQLite, and the toy study in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import StudyStorage, open_storage
from tests.support.studies import define


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(StorageSettings(lease_s=5), tmp_path, create=True)
    yield opened
    opened.close()


@pytest.fixture
def study(storage: StudyStorage) -> optuna.Study:
    return define(storage)
