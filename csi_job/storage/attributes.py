"""Names of the attributes in which a study and its trials keep what Optuna has no column for."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from optuna.trial import FrozenTrial, TrialState

# of the study
FINGERPRINT: Final = "fingerprint"  # what all workers must agree on
SETTINGS: Final = "settings"  # the settings tree that it was created with, without secrets and paths of a machine
TARGET: Final = "target"  # the total of finished trials
TARGET_CHANGES: Final = "target_changes"  # the latest [{token, more, total}, …]; `more` is null where a total was given
MAX_EPOCHS_TOTAL: Final = "max_epochs_total"  # null: no limit; absent in studies of earlier versions, see `SETTINGS`
MAX_EPOCHS_GIVEN: Final = "max_epochs_given"  # the limit that a file or variable gave last; absent: that of `SETTINGS`
OBJECTIVE: Final = "objective"
SEED: Final = "seed"
UID: Final = "uid"  # unlike the name, never used again, e.g. for experiment tracking
USED: Final = "used"  # {seconds, gpu_seconds} of the search's pods on a cluster; earlier controllers take nothing else
USED_UNTIL: Final = "used_until_s"  # when that was metered, in seconds since 1970
ENDED: Final = "ended"  # whether its budget has ended the search: no trial starts, or is resumed
PLANNED_FOR: Final = "planned_for"  # of a study that confirms another: its finished trials at the last plan

# in a file about a study
STUDY_UID: Final = "study_uid"

# of a trial
BASELINE: Final = "baseline"
SAMPLER: Final = "sampler"
PRUNER: Final = "pruner"
MAX_EPOCHS: Final = "max_epochs"
NUM_STARTUP_TRIALS: Final = "num_startup_trials"
MIN_RESOURCE: Final = "min_resource"  # this and the next: with a pruner that pauses
REDUCTION_FACTOR: Final = "reduction_factor"
# Study settings that may change between phases; each trial records them under these names.
PHASE: Final[tuple[str, ...]] = (MAX_EPOCHS, SAMPLER, NUM_STARTUP_TRIALS, PRUNER, MIN_RESOURCE, REDUCTION_FACTOR)
ATTEMPT: Final = "attempt"
EPOCHS: Final = "epochs"  # finished ones
PAUSED: Final = "paused"  # the attempt that paused the trial; it waits as long as that is its last
RUNS: Final = "runs"  # of a trial that was paused: [[start, end, worker], …] in seconds since 1970, null while it runs
BRACKET: Final = "bracket"  # of Hyperband, from 0
CURVE: Final = "curve"  # [[epoch, val_f1], …], with two objectives only
LOSSES: Final = "losses"  # [[epoch, training loss, validation loss], …]
WORKER: Final = "worker"  # host and process of the last attempt
GFLOPS: Final = "gflops"  # per image
IMAGES_PER_S: Final = "images_per_s"
BEST_EPOCH: Final = "best_epoch"
NUM_PARAMETERS: Final = "num_parameters"
MICRO_BATCH: Final = "micro_batch"
F1_SE: Final = "f1_se"  # standard error of the best epoch's val_f1, by a patient-level bootstrap
OLD_F1_SE: Final = "f1_std"  # read for one release
REASON: Final = "reason"
INFEASIBLE: Final = "infeasible"
CANCELLED: Final = "cancelled"  # waited beyond the target
REJECTED: Final = "rejected"  # enqueued by another program with values outside the space, so it failed untrained
MIGRATED_FROM: Final = "migrated_from"  # {study, uid, trial}: where a migrated trial was trained

# of a trial, Optuna's own
FIXED_PARAMS: Final = "fixed_params"
CONSTRAINTS: Final = "constraints"
CONSTRAINT: Final = f"{CONSTRAINTS}:trainable"  # positive: infeasible, as `optuna.trial.Trial.set_constraint` stores it
RUNG_PREFIX: Final = "completed_rung_"  # of what successive halving keeps of its rungs
CMA_ES_PREFIX: Final = "cma:"  # of what CMA-ES keeps of its state


# What the text of a count looks like, by its name, in Python and in SQL; another program may store anything.
_COUNT: Final = "^(0|[1-9][0-9]*)$"
COUNTS: Final[Mapping[str, str]] = {
    MIN_RESOURCE: "^[1-9][0-9]{0,8}$",
    REDUCTION_FACTOR: "^([2-9]|[1-9][0-9]{1,8})$",
    BRACKET: "^(0|[1-9][0-9]?)$",
}

TrialOutcome = Literal["complete", "pruned", "infeasible", "failed", "cancelled", "running", "paused", "waiting"]
OUTCOMES: Final[tuple[TrialOutcome, ...]] = get_args(TrialOutcome)
FINISHED: Final[tuple[TrialOutcome, ...]] = ("complete", "pruned", "infeasible")  # what counts toward the target
_OF_STATE: Final[dict[TrialState, TrialOutcome]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def is_same_uid(one: object, other: object) -> bool:
    """Return whether two studies of one name are the same; None is of a study or file that does not say."""
    return None in (one, other) or one == other


def uid_of(attributes: Mapping[str, Any]) -> str | None:
    """Return the uid among a study's attributes; None if it has none, or another program stored something else."""
    uid = attributes.get(UID)
    return uid if isinstance(uid, str) else None


def target_of(attributes: Mapping[str, Any]) -> int | None:
    """Return the target among a study's attributes; None if another program made it, whatever it keeps there."""
    return count_of(attributes, TARGET)


def target_changes_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the latest changes of the target among a study's attributes; none if another program stored others."""
    changes: Any = attributes.get(TARGET_CHANGES)
    required = {"token", "more", "total"}
    is_ours = isinstance(changes, list) and all(
        isinstance(change, dict) and change.keys() >= required and count_of(change, "total") is not None
        for change in changes
    )
    return changes if is_ours else []


def seed_of(attributes: Mapping[str, Any]) -> int:
    """Return the seed among a study's attributes; 0 if it has none."""
    return count_of(attributes, SEED) or 0


def count_of(attributes: Mapping[str, Any], name: str) -> int | None:
    """Return the count of this name; None if there is none, or another program stored something else."""
    value = attributes.get(name)
    is_count = isinstance(value, int) and re.search(COUNTS.get(name, _COUNT), json.dumps(value))
    return value if is_count else None


def is_number(value: object) -> bool:
    """Return whether a stored value is a number that fits a float; infinite and NaN are."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def number_of(attributes: Mapping[str, Any], name: str) -> float | None:
    """Return the finite number of this name; None if there is none, or another program stored something else."""
    value: Any = attributes.get(name)
    return float(value) if is_number(value) and math.isfinite(value) else None


def readable_by_optuna(system: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's system attributes without those in which Optuna's samplers and pruners would fail.

    Another program may have stored anything under their names; CMA-ES even unpickles what it finds.
    """

    def is_readable(name: str, value: Any) -> bool:
        if name.startswith((CONSTRAINTS + ":", RUNG_PREFIX)):
            return is_number(value)
        if name == CONSTRAINTS:  # as Optuna stored them before version 5
            return isinstance(value, list) and all(map(is_number, value))
        return not name.startswith(CMA_ES_PREFIX) or user.get(SAMPLER) == "cmaes"

    return {name: value for name, value in system.items() if is_readable(name, value)}


def max_epochs_total_of(attributes: Mapping[str, Any]) -> int | None:
    """Return the limit of epochs among a study's attributes, None if it has none.

    Earlier versions kept it only among the settings that the study was created with.
    """
    is_earlier = MAX_EPOCHS_TOTAL not in attributes
    return count_of(settings_of(attributes).get("study", {}) if is_earlier else attributes, MAX_EPOCHS_TOTAL)


def fingerprint_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint among a study's attributes; empty if another program made it, whatever it keeps there."""
    fingerprint: Any = attributes.get(FINGERPRINT)
    if not isinstance(fingerprint, dict) or not isinstance(fingerprint.get("cache", ""), str):
        return {}
    parts = [fingerprint.get(name, {}) for name in ("space", "baseline", "trial", "radiographs")]
    parts += parts[0].values() if isinstance(parts[0], dict) else ()
    return fingerprint if all(isinstance(part, dict) for part in parts) else {}


def settings_of(attributes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sections of settings among a study's attributes; none if another program stored something else."""
    settings = attributes.get(SETTINGS)
    sections = settings.items() if isinstance(settings, dict) else ()
    return {name: section for name, section in sections if isinstance(section, dict)}


def outcome_of(trial: FrozenTrial) -> TrialOutcome:
    """Return the outcome of a trial; `infeasible` is a kind of pruned, `cancelled` of failed, `paused` of running."""
    state, attributes = trial.state, trial.user_attrs
    if state is TrialState.PRUNED and attributes.get(INFEASIBLE):
        return "infeasible"
    if state is TrialState.FAIL and attributes.get(CANCELLED):
        return "cancelled"
    if state is TrialState.RUNNING and PAUSED in attributes and attributes[PAUSED] == attributes.get(ATTEMPT):
        return "paused"
    return _OF_STATE[state]


def curve_of(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Return the epochs of a trial, from 0, with their validation F1.

    With two objectives Optuna refuses intermediate values, so there the curve is an attribute.
    """
    return sorted(trial.intermediate_values.items() or rows_of(trial, CURVE, int, float))


def rows_of(trial: FrozenTrial, name: str, *kinds: Callable[[Any], Any]) -> list[tuple[Any, ...]]:
    """Return the rows of an attribute, a cell of each of these kinds; none if another program stored something else."""
    with suppress(TypeError, ValueError, OverflowError):
        rows = trial.user_attrs.get(name, ())
        return [tuple(kind(cell) for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    return []


def runs_of(trial: FrozenTrial) -> list[tuple[float, float | None, str]]:
    """Return the runs of a trial that was paused: start, end and worker, as they are stored under `RUNS`."""
    return rows_of(trial, RUNS, _time, lambda end: None if end is None else _time(end), str)


def _time(seconds: Any) -> float:
    """Return seconds since 1970; raise `ValueError` or `OverflowError` if `datetime` has no such time."""
    datetime.fromtimestamp(float(seconds), UTC)
    return float(seconds)


def seconds_of(trial: FrozenTrial) -> float | None:
    """Return how long a trial ran until its end or last pause, None before; clocks may have changed meanwhile.

    The time for which it was paused does not count.
    """
    start, end = trial.datetime_start, trial.datetime_complete
    if runs := [(first, last) for first, last, _ in runs_of(trial) if last is not None]:
        return float(sum(max(last - first, 0.0) for first, last in runs))
    if start is None or end is None:
        return None
    return max((end.astimezone(UTC) - start.astimezone(UTC)).total_seconds(), 0.0)


def best_of(values: Iterable[float]) -> float | None:
    """Return the largest of the values that are numbers, as Optuna's pruners see them; None if none is."""
    return max((value for value in values if not math.isnan(value)), default=None)


def f1_standard_error_of(trial: FrozenTrial) -> float | None:
    """Return the standard error of a trial's F1, under whichever name it was stored."""
    error = number_of(trial.user_attrs, F1_SE if F1_SE in trial.user_attrs else OLD_F1_SE)
    return error if error is not None and error >= 0 else None
