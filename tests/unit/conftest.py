"""A storage on SQLite, and the toy study in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import optuna

    from csi_job.storage.storage import StudyStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    import optuna  # here, since most tests need none of this and it takes seconds

    from csi_job.storage.settings import StorageSettings
    from csi_job.storage.storage import open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(StorageSettings(lease_s=5), tmp_path, create=True)
    yield opened
    opened.close()


@pytest.fixture
def study(storage: StudyStorage) -> optuna.Study:
    from tests.support.studies import define

    return define(storage)
