"""One study carried between databases: read at one moment while workers run, and restored all or nothing."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError
from csi_job.files import write_file
from csi_job.logs import progress
from csi_job.storage.attributes import UID, TrialOutcome, outcome_of
from csi_job.storage.engine import lock_schema
from csi_job.storage.lease import new_token
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.retry import reason
from csi_job.storage.storage import StudyStorage
from csi_job.storage.tables import DIRECTIONS, STUDIES, STUDY_ATTRIBUTES, STUDY_SYSTEM_ATTRIBUTES
from csi_job.study.definition import find_study, load_study
from csi_job.study.settings import checked_name
from csi_job.transfer.backup_file import Backup, encode
from csi_job.transfer.stored import insert_stored, read_stored, snapshot


def read_backup(storage: StudyStorage, name: str) -> Backup:
    """Read a study as it is at one moment; workers go on meanwhile.

    Raises:
        ConfigurationError: there is no study of this name, or trials were cut out of it.

    """
    study_id = study_id_of(load_study(storage, name))

    def look(connection: Connection) -> Backup:
        where = DIRECTIONS.c.study_id == study_id
        directions = sa.select(DIRECTIONS.c.direction).where(where).order_by(DIRECTIONS.c.objective)
        return Backup(
            name=name,
            created=datetime.now(UTC).replace(tzinfo=None),
            directions=[*connection.execute(directions).scalars()],
            user_attrs=_attributes(connection, STUDY_ATTRIBUTES, study_id),
            system_attrs=_attributes(connection, STUDY_SYSTEM_ATTRIBUTES, study_id),
            trials=read_stored(connection, study_id),
        )

    backup = snapshot(storage, look)
    if [trial.number for trial in backup.trials] != [*range(len(backup.trials))]:
        message = f"study {name} has {len(backup.trials)} trials whose numbers have gaps"
        raise ConfigurationError(message, hint=f"take its tables out with `csi-job study export {name} FOLDER`")
    return backup


def write_backup(backup: Backup, file: Path) -> None:
    """Write a backup, compressed if the file's name ends in .gz.

    Raises:
        CsiJobError: the folder cannot be written, or the disk is full.

    """
    with progress("writing trials", len(backup.trials), "trials") as advance:
        content = encode(backup, advance)
    write_file(file, gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)


def count_outcomes(backup: Backup) -> list[tuple[TrialOutcome, int]]:
    """Return the number of trials by outcome, the most frequent first."""
    return Counter(outcome_of(trial.state, trial.user_attributes()) for trial in backup.trials).most_common()


def restore_backup(storage: StudyStorage, backup: Backup, name: str) -> None:
    """Make a study from a backup, in one transaction.

    Under another name it is another study, which experiment tracking tells apart from the first. A running trial is
    left to the next worker, which goes on from its checkpoint where work folder and name are the same.

    Args:
        storage: a database whose tables exist.
        backup: of `read_backup` or a file.
        name: the study's name from now on.

    Raises:
        ConfigurationError: there is a study of this name, or the name or a part of the backup cannot be stored.

    """
    checked_name(name)
    made: int | None = None

    def transaction(connection: Connection) -> None:
        nonlocal made
        lock_schema(connection)
        there = find_study(connection, name)
        if there is not None and there == made:
            return  # it was the answer to the COMMIT that was lost
        if there is not None:
            hint = "restore it under another name: --study-name NEW"
            raise ConfigurationError("there is a study of this name already", got=name, hint=hint)
        made = _inserted(connection, backup, name)

    try:
        storage.write(transaction)
    except (sa.exc.DBAPIError, ValueError, OverflowError) as error:
        message = f"the database does not take a part of the backup: {reason(error)}"
        raise ConfigurationError(message, hint="nothing was restored") from None


def _attributes(connection: Connection, table: sa.Table, study_id: int) -> dict[str, str]:
    query = sa.select(table).where(table.c.study_id == study_id).order_by(next(iter(table.primary_key)))
    return {row.key: row.value_json for row in connection.execute(query)}


def _inserted(connection: Connection, backup: Backup, name: str) -> int:
    """Insert a study with all its trials and return its id."""
    made = sa.insert(STUDIES).values(study_name=name).returning(STUDIES.c.study_id)
    study_id = int(connection.execute(made).scalar_one())
    directions = [
        {"study_id": study_id, "objective": objective, "direction": direction}
        for objective, direction in enumerate(backup.directions)
    ]
    user_attrs = dict(backup.user_attrs)
    if name != backup.name and UID in user_attrs:
        user_attrs[UID] = json.dumps(new_token()[:8])
    attributes = [(STUDY_ATTRIBUTES, user_attrs), (STUDY_SYSTEM_ATTRIBUTES, backup.system_attrs)]
    parts = [(table, _attribute_rows(study_id, texts)) for table, texts in attributes]
    for table, rows in [(DIRECTIONS, directions), *parts]:
        if rows:
            connection.execute(sa.insert(table), rows)
    with progress("restoring trials", len(backup.trials), "trials") as advance:
        insert_stored(connection, study_id, backup.trials, advance)
    return study_id


def _attribute_rows(study_id: int, texts: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"study_id": study_id, "key": key, "value_json": text} for key, text in texts.items()]
