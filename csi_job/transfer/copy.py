"""Copy a study into another database: read in one snapshot while workers run, written in one transaction."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError
from csi_job.html.format import plural
from csi_job.logs import progress
from csi_job.storage.attributes import UID, outcome_of
from csi_job.storage.engine import lock_schema
from csi_job.storage.lease import RELEASED_AT_S, new_token
from csi_job.storage.retry import reason
from csi_job.storage.storage import StudyStorage, storage_of
from csi_job.storage.study_rows import find_study
from csi_job.storage.tables import LEASES, STUDIES, STUDY_ATTRIBUTES, STUDY_PARTS, TRIAL_PARTS, TRIALS
from csi_job.study.definition import load_study
from csi_job.study.settings import checked_name

BATCH_SIZE: Final = 500  # trials per round of inserts
Row = Mapping[str, Any]


@dataclass
class TrialRows:
    """One trial as the tables hold it, under the ids of the database it was read from."""

    own: Row
    """Its row of `trials`."""
    parts: dict[sa.Table, list[Row]] = field(default_factory=dict)
    """Its rows of the other tables."""


@dataclass
class StudyRows:
    """One study as the tables hold it."""

    name: str
    parts: dict[sa.Table, list[Row]]
    """Its directions and attributes."""
    trials: list[TrialRows]
    """By number."""


def copy_study(source: StudyStorage, name: str, target: StudyStorage, new_name: str | None = None) -> optuna.Study:
    """Copy a study with everything the tables hold: definition, attributes, unfinished trials and their attempts.

    Rows are copied as they are stored, so that nothing is rounded or converted; `optuna.copy_study` writes one
    transaction per trial and knows neither running trials nor leases. A running trial becomes an orphan in the copy:
    the next worker there resumes it from its checkpoint if it finds one in its work folder.

    Args:
        source: where the study is; its workers may be running.
        name: the study to copy.
        target: another storage, or the same one.
        new_name: the name of the copy; a renamed copy gets a new uid, which distinguishes the two in W&B.

    Raises:
        ConfigurationError: no such study, trials missing from it, a target that has a study of this name already or
            cannot store part of this one.
    """
    checked_name(new_name or name)
    rows = read_study_rows(source, name)
    write_study_rows(target, rows, new_name or name)
    return load_study(target, new_name or name)


def summarize_copy(copy: optuna.Study, name: str) -> list[str]:
    """Return, in sentences, what was copied from study `name` and how the copy's running trials continue."""
    trials = copy.get_trials(deepcopy=False)
    outcomes = Counter(outcome_of(trial) for trial in trials).most_common()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
    renamed = f" as {copy.study_name}" if copy.study_name != name else ""
    lines = [f"study {name} copied to {storage_of(copy).address}{renamed}: {plural(len(trials), 'trial')} ({counts})"]
    if num_running := sum(outcome_of(trial) == "running" for trial in trials):
        which, places = "1 of them was running: the copy's next worker resumes it", "its checkpoint"
        if num_running > 1:
            which, places = (
                f"{num_running} of them were running: the copy's next workers resume them",
                "their checkpoints",
            )
        start = "from epoch 1" if renamed else f"from {places} if the work folder is the same"
        lines.append(f"{which}, {start}")
    return lines


def read_study_rows(storage: StudyStorage, name: str) -> StudyRows:
    """Read all rows of a study in one snapshot; see `copy_study`."""
    load_study(storage, name)  # if it is missing, the error names those that exist

    def transaction() -> StudyRows:
        engine = storage.engine.execution_options(sqlite_readonly=True)  # without stopping the workers
        with engine.begin() as connection:
            if not storage.address.is_sqlite:
                connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            study_id = find_study(connection, name)
            if study_id is None:
                raise ConfigurationError("the study was deleted in the meantime", got=name)
            parts = {
                table: _select(connection, sa.select(table).where(table.c.study_id == study_id), table)
                for table in STUDY_PARTS
            }
            return StudyRows(name, parts, read_trial_rows(connection, study_id))

    rows = storage.retry.call(transaction)
    if [trial.own["number"] for trial in rows.trials] != [*range(len(rows.trials))]:
        message = f"the numbers of the {len(rows.trials)} trials of study {name} have gaps"
        raise ConfigurationError(message, hint=f"save its trials with `csi-job study export {name} FOLDER`")
    return rows


def write_study_rows(storage: StudyStorage, rows: StudyRows, name: str) -> None:
    """Insert a study in one transaction; see `copy_study`."""
    inserted: int | None = None

    def transaction(connection: Connection) -> None:
        nonlocal inserted
        lock_schema(connection)
        existing = find_study(connection, name)
        if existing is not None and existing == inserted and not storage.address.is_sqlite:
            return  # an earlier try committed, but the reply was lost; SQLite loses none, but reuses ids
        if existing is not None:
            message = "the target already has a study of this name"
            raise ConfigurationError(message, got=name, hint="copy it under another name: --as NEW")
        query = sa.insert(STUDIES).values(study_name=name).returning(STUDIES.c.study_id)
        inserted = int(connection.execute(query).scalar_one())
        for table, part in rows.parts.items():
            if part:
                values = [_without_key(table, row) | {"study_id": inserted} for row in part]
                connection.execute(sa.insert(table), values)
        if name != rows.name:
            is_uid = sa.and_(STUDY_ATTRIBUTES.c.study_id == inserted, STUDY_ATTRIBUTES.c.key == UID)
            new_uid = json.dumps(new_token()[:8])
            connection.execute(sa.update(STUDY_ATTRIBUTES).where(is_uid).values(value_json=new_uid))
        insert_trial_rows(connection, inserted, rows.trials, "copying trials")

    try:
        storage.write(transaction)
    except (sa.exc.DBAPIError, ValueError, OverflowError) as error:
        message = f"the target cannot store part of the study: {reason(error)}"
        raise ConfigurationError(message, hint="nothing was copied") from None


def read_trial_rows(connection: Connection, study_id: int) -> list[TrialRows]:
    """Read the rows of a study's trials, by number; leases only of running ones."""
    mine = TRIALS.c.study_id == study_id
    trials = {row["trial_id"]: TrialRows(row) for row in _select(connection, sa.select(TRIALS).where(mine), TRIALS)}
    for table in (*TRIAL_PARTS, LEASES):
        query = sa.select(table).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id).where(mine)
        if table is LEASES:
            query = query.where(TRIALS.c.state == TrialState.RUNNING)
        for row in _select(connection, query, table):
            trials[row["trial_id"]].parts.setdefault(table, []).append(row)
    return sorted(trials.values(), key=lambda trial: int(trial.own["number"]))


def insert_trial_rows(connection: Connection, study_id: int, trials: Sequence[TrialRows], description: str) -> None:
    """Insert trials under their numbers, in few statements; the caller holds the study's lock."""
    query = sa.insert(TRIALS).returning(TRIALS.c.number, TRIALS.c.trial_id)
    with progress(description, len(trials), "trials") as advance:
        for first in range(0, len(trials), BATCH_SIZE):
            batch = trials[first : first + BATCH_SIZE]
            rows = [_without_key(TRIALS, trial.own) | {"study_id": study_id} for trial in batch]
            ids = {row.number: row.trial_id for row in connection.execute(query, rows)}
            # Optuna deletes trials without their leases, and SQLite reuses their ids.
            connection.execute(sa.delete(LEASES).where(LEASES.c.trial_id.in_(ids.values())))
            for table in (*TRIAL_PARTS, LEASES):
                parts = [
                    _without_key(table, row) | {"trial_id": ids[trial.own["number"]]}
                    for trial in batch
                    for row in trial.parts.get(table, ())
                ]
                if table is LEASES:  # anyone may take them, with the attempt not counted as lost
                    free = {"owner": "", "renewed_at_s": RELEASED_AT_S, "lease_s": 0.0}
                    parts = [lease | free | {"token": new_token()} for lease in parts]
                if parts:
                    connection.execute(sa.insert(table), parts)
            advance(len(batch))


def _select(connection: Connection, query: sa.Select[Any], table: sa.Table) -> list[Row]:
    """Return rows in the order they were inserted, which is that of a trial's parameters."""
    return [*connection.execute(query.order_by(*table.primary_key)).mappings()]


def _without_key(table: sa.Table, row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in table.primary_key}
