"""Create Optuna's tables and ours once; reject tables of another Optuna version."""

from contextlib import closing
from functools import cache

import optuna
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from csi_job.errors import ConfigurationError, NoStudyError
from csi_job.storage.engine import lock_schema
from csi_job.storage.optuna_private import HEAD_REVISION, METADATA, SCHEMA_VERSION
from csi_job.storage.tables import ALEMBIC_VERSION, LEASES, OURS, STEPS, VERSION_INFO
from csi_job.storage.url import Address


def create_schema(engine: Engine) -> None:
    """Create missing tables; any number of processes may do this concurrently on an empty database."""
    if engine.dialect.name == "sqlite":
        with closing(engine.raw_connection()) as raw:  # outside a transaction
            raw.cursor().execute("PRAGMA journal_mode = WAL")
    with engine.begin() as connection:
        lock_schema(connection)
        if _stored_version(connection) is None:
            METADATA.create_all(connection)
            ALEMBIC_VERSION.create(connection, checkfirst=True)
            connection.execute(sa.insert(ALEMBIC_VERSION).values(version_num=HEAD_REVISION))
            if connection.execute(sa.select(VERSION_INFO)).first() is None:
                version = {"schema_version": SCHEMA_VERSION, "library_version": optuna.__version__}
                connection.execute(sa.insert(VERSION_INFO).values(version_info_id=1, **version))
        OURS.create_all(connection)
        _step_index().create(connection, checkfirst=True)


@cache  # since it belongs to the table from now on
def _step_index() -> sa.Index:
    """Return an index by epoch; without one, a median over many trials would read every value of every study.

    It is made only here, because its option imports PostgreSQL's dialect.
    """
    included = [STEPS.c.intermediate_value.name]
    return sa.Index("csi_job_steps", STEPS.c.step, STEPS.c.trial_id, postgresql_include=included)


def check_schema(engine: Engine, address: Address) -> None:
    """Reject a database without tables, or with those of another Optuna version.

    Raises:
        ConfigurationError: it never held a study, or its tables need an upgrade.
    """
    with engine.connect() as connection:
        stored = _stored_version(connection)
        complete = stored is not None and sa.inspect(connection).has_table(LEASES.name)
    if stored is not None and stored != HEAD_REVISION:
        message = f"the tables in {address} are of another Optuna version (schema {stored})"
        command = f"optuna storage upgrade --storage '{address.argument}'"
        hint = f"back it up, then run `{command}` with Optuna {optuna.__version__}"
        raise ConfigurationError(message, allowed=f"schema {HEAD_REVISION}", hint=hint)
    if not complete:
        raise NoStudyError(f"there is no study in {address}", hint="`csi-job hyperopt` creates one")


def _stored_version(connection: Connection) -> str | None:
    """Return the version that Alembic stores; Alembic itself is slow to import."""
    if not sa.inspect(connection).has_table(ALEMBIC_VERSION.name):
        return None
    return connection.scalar(sa.select(ALEMBIC_VERSION.c.version_num))
