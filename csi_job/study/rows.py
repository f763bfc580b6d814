"""Trials written to Optuna's tables with few statements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.study.database import now_utc, upsert
from csi_job.study.tables import PARAMS, STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES

parsed_distribution = lru_cache(maxsize=4096)(json_to_distribution)  # a study has few, each stored once a trial


@dataclass
class TrialWrite:
    """What is written to a trial in one transaction.

    `params` holds internal values with their distributions, `steps` intermediate values, `values` final ones.
    """

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    values: Sequence[float] = ()
    state: TrialState | None = None


def child_rows(trial_id: int, write: TrialWrite) -> list[tuple[sa.Table, list[dict[str, Any]], tuple[str, ...]]]:
    """Return what is written beside the trial's own row: tables, their rows, and the columns that tell rows apart."""
    written = [
        (PARAMS, [_param_row(trial_id, name, *param) for name, param in write.params.items()], "param_name"),
        (USER_ATTRIBUTES, [_attribute_row(trial_id, key, value) for key, value in write.user_attrs.items()], "key"),
        (SYSTEM_ATTRIBUTES, [_attribute_row(trial_id, key, value) for key, value in write.system_attrs.items()], "key"),
        (STEPS, [step_row(trial_id, step, value) for step, value in write.steps.items()], "step"),
        (VALUES, [_value_row(trial_id, index, value) for index, value in enumerate(write.values)], "objective"),
    ]
    return [(table, rows, ("trial_id", key)) for table, rows, key in written if rows]


def write_trial(connection: Connection, trial_id: int, write: TrialWrite) -> None:
    """Write the rows of one trial; whether the caller may is not asked here."""
    for table, rows, keys in child_rows(trial_id, write):
        upsert(connection, table, rows, keys)
    if write.state is not None:
        set_state(connection, trial_id, write.state)


def set_state(connection: Connection, trial_id: int, state: TrialState) -> None:
    """Change a trial's state and stamp its start or end."""
    changes = state_changes(connection, state)
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(**changes))


def state_changes(connection: Connection, state: TrialState) -> dict[str, Any]:
    """Return the columns of a trial that change with its state."""
    if state is TrialState.RUNNING:
        return {"state": state, "datetime_start": now_utc(connection)}
    return {"state": state} | ({"datetime_complete": now_utc(connection)} if state.is_finished() else {})


def insert_trial(connection: Connection, study_id: int, number: int, state: TrialState) -> int:
    """Insert a trial and return its id; the caller holds the study's lock."""
    start = now_utc(connection) if state is TrialState.RUNNING else None
    row = {"study_id": study_id, "number": number, "state": state, "datetime_start": start}
    result = connection.execute(sa.insert(TRIALS).values(**row).returning(TRIALS.c.trial_id))
    return int(result.scalar_one())


def remove_steps(connection: Connection, trial_id: int, first: int) -> None:
    """Remove a trial's intermediate values from this step on, and the pruner's notes, which stem from them."""
    connection.execute(sa.delete(STEPS).where(STEPS.c.trial_id == trial_id, STEPS.c.step >= first))
    notes = SYSTEM_ATTRIBUTES.c.key.startswith("completed_rung_", autoescape=True)
    connection.execute(sa.delete(SYSTEM_ATTRIBUTES).where(SYSTEM_ATTRIBUTES.c.trial_id == trial_id, notes))


def _param_row(trial_id: int, name: str, value: float, distribution: BaseDistribution) -> dict[str, Any]:
    text = distribution_to_json(distribution)
    return {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}


def _attribute_row(trial_id: int, key: str, value: Any) -> dict[str, Any]:
    return {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}


def step_row(trial_id: int, step: int, value: float) -> dict[str, Any]:
    """Return the row of `trial_intermediate_values` for a number."""
    stored, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def step_value(row: Row[Any]) -> float:
    """Return the number that a row of `trial_intermediate_values` stands for."""
    return float(
        TrialIntermediateValueModel.stored_repr_to_intermediate_value(
            row.intermediate_value, row.intermediate_value_type
        )
    )


def _value_row(trial_id: int, objective: int, value: float) -> dict[str, Any]:
    stored, kind = TrialValueModel.value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
