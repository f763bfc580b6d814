"""Fixtures of the storage on both databases, for the folders of tests that need them."""

import optuna
import pytest

from csi_job.storage.storage import open_storage
from tests.support.postgres import embedded_server, postgres_server
from tests.support.studies import storage_settings


@pytest.fixture(scope="session")
def server():
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def mortal():
    """A server that may be killed."""
    with embedded_server() as server:
        yield server


@pytest.fixture
def postgres_url(server):
    with server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def storage(url, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(storage_settings(url, lease_s=5), tmp_path, create=True)
    yield opened
    opened.close()
