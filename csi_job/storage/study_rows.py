"""Studies as rows: which study an id means, the lock on it, its attributes, its removal."""

import json
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from csi_job.storage.attributes import TARGET, TARGET_CHANGES, UID, target_changes_of
from csi_job.storage.engine import advisory_lock, upsert
from csi_job.storage.tables import HEARTBEATS, LEASES, STUDIES, STUDY_ATTRIBUTES, STUDY_PARTS, TRIAL_PARTS, TRIALS

NUM_CHANGES_KEPT: Final = 20


def find_identity(connection: Connection, name: str) -> Row[Any] | None:
    """Return the `study_id` of the study of this name and its `uid`, None if another program made it."""
    is_uid = sa.and_(STUDY_ATTRIBUTES.c.study_id == STUDIES.c.study_id, STUDY_ATTRIBUTES.c.key == UID)
    columns = (STUDIES.c.study_id, STUDY_ATTRIBUTES.c.value_json.label("uid"))
    query: sa.Select[Any] = sa.select(*columns).outerjoin(STUDY_ATTRIBUTES, is_uid)
    return connection.execute(query.where(STUDIES.c.study_name == name)).first()


def decoded_uid(stored: str | None) -> str:
    """Return a study's uid as text from the JSON that is stored of it; empty if it has none."""
    return str(json.loads(stored)) if stored else ""


def find_study(connection: Connection, name: str) -> int | None:
    """Return the id of the study of this name, None if there is none."""
    found = find_identity(connection, name)
    return None if found is None else int(found.study_id)


def has_uid(study_id: sa.ColumnElement[int], uid: str | None) -> sa.ColumnElement[bool]:
    """Return whether a study has this uid, as stored; SQLite uses the id of a deleted study again."""
    if uid is None:
        return sa.true()
    is_uid = (STUDY_ATTRIBUTES.c.key == UID, STUDY_ATTRIBUTES.c.value_json == uid)
    return sa.select(sa.literal(1)).where(STUDY_ATTRIBUTES.c.study_id == study_id, *is_uid).exists()


def lock_study(connection: Connection, study_id: int, uid: str | None = None) -> bool:
    """Lock a study until the transaction ends, and return whether it exists.

    Its row is locked too, as Optuna does when it creates a trial, so that a trial added by another tool gets a unique
    number.
    """
    query = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id, has_uid(STUDIES.c.study_id, uid))
    if connection.dialect.name == "postgresql":
        query = query.add_columns(advisory_lock(study_id)).with_for_update()
    return connection.execute(query).first() is not None


def stored_attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    """Return a study's user attributes."""
    mine = sa.select(STUDY_ATTRIBUTES).where(STUDY_ATTRIBUTES.c.study_id == study_id)
    return {row.key: json.loads(row.value_json) for row in connection.execute(mine)}


def set_attribute(connection: Connection, table: sa.Table, study_id: int, key: str, value: object) -> None:
    """Set an attribute of a study; the caller holds its lock."""
    upsert(connection, table, [attribute_row(study_id, key, value)], ("study_id", "key"))


def store_target(
    connection: Connection, study_id: int, target: int, *, token: str = "", more: int | None = None
) -> None:
    """Store a study's total of finished trials; the caller holds its lock.

    With a token, the change is noted among the latest: its number of trials that were added, None for a new total.
    """
    set_attribute(connection, STUDY_ATTRIBUTES, study_id, TARGET, target)
    if token:
        changes = target_changes_of(stored_attributes(connection, study_id))
        changes = [*changes, {"token": token, "more": more, "total": target}][-NUM_CHANGES_KEPT:]
        set_attribute(connection, STUDY_ATTRIBUTES, study_id, TARGET_CHANGES, changes)


def attribute_row(study_id: int, key: str, value: object) -> dict[str, Any]:
    """Return an attribute of a study as a row of its table."""
    return {"study_id": study_id, "key": key, "value_json": json.dumps(value)}


def delete_rows(connection: Connection, study_id: int) -> None:
    """Delete a study with its trials and their leases; the caller holds its lock."""
    trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    # Leases first: a worker that reports holds its lease's row until it has committed, and finds none afterwards.
    for table in (LEASES, *TRIAL_PARTS, HEARTBEATS):
        connection.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))
    for table in (*STUDY_PARTS, TRIALS, STUDIES):
        connection.execute(sa.delete(table).where(table.c.study_id == study_id))
