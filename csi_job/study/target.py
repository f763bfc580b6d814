"""The limits of a study, finished trials and epochs in all: shared by all its workers, changed under its lock."""

import logging
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, Final

import optuna
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import (
    MAX_EPOCHS_GIVEN,
    MAX_EPOCHS_TOTAL,
    max_epochs_total_of,
    settings_of,
    target_changes_of,
)
from csi_job.storage.claim import Counts, cancel_excess, count_trials
from csi_job.storage.lease import new_token
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.storage import storage_of
from csi_job.storage.study_rows import set_attribute, store_target, stored_attributes
from csi_job.storage.tables import STUDY_ATTRIBUTES

logger = logging.getLogger(__name__)
LOWERED: Final = "lowering the total of study %(study)s, which all its workers share, from %(old)s to %(new)d %(nouns)s"
KEPT: Final = "study %(study)s keeps its total of %(nouns)s, %(old)s; it was changed after these settings gave %(new)s"
NO_LIMIT: Final = "no limit"


def set_target(
    study: optuna.Study,
    *,
    num_trials: int | None = None,
    more_trials: int | None = None,
    max_epochs_total: int | EllipsisType | None = ...,
    lenient: bool = False,
    lenient_epochs: bool = False,
    token: str = "",
) -> int:
    """Change the total number of finished trials, and that of epochs, once, under the study's lock.

    Args:
        study: the study.
        num_trials: the new total.
        more_trials: trials to add to the total, or to the number of finished trials if that is larger.
        max_epochs_total: the new limit of epochs over all trials, None for no limit; by default it is kept.
        lenient: `num_trials` is from a file or variable. It undoes no addition made since the study was given it, and
            keeps the trials that are finished, running or waiting within the present total.
        lenient_epochs: `max_epochs_total` is from a file or variable. It undoes no change made since one gave the same.
        token: identifies the change, which happens once. Without one, an addition of as many trials that are not
            finished yet is taken for that of the same command, which was interrupted, and is continued.

    Returns:
        the new target; waiting trials beyond it are cancelled.

    Raises:
        ConfigurationError: `num_trials` is below the number of trials that are finished or running.
    """
    storage, study_id = storage_of(study), study_id_of(study)
    own_token = token or new_token()

    def transaction(connection: Connection) -> int:
        storage.lock(connection, study_id)
        counts = count_trials(connection, study_id)
        attributes = stored_attributes(connection, study_id)
        for change in (changes := target_changes_of(attributes)):
            if change["token"] == own_token:
                return int(change["total"])  # an earlier try committed, and only the reply was lost
        target = _new_total(study, counts, num_trials, attributes, lenient=lenient)
        if more_trials is not None:
            pending = not token and _pending(counts, more_trials, changes)
            target = counts.target if pending else max(counts.target, counts.num_finished) + more_trials
        _warn_if_lowered(study, counts.target, target, "trials")
        if target != counts.target:
            store_target(connection, study_id, target, token=own_token, more=more_trials)
        _set_max_epochs_total(connection, study, attributes, max_epochs_total, lenient=lenient_epochs)
        cancel_excess(connection, study_id, count_trials(connection, study_id))
        return target

    return storage.write(transaction)


def _set_max_epochs_total(
    connection: Connection,
    study: optuna.Study,
    attributes: Mapping[str, Any],
    new: int | EllipsisType | None,
    *,
    lenient: bool,
) -> None:
    created_with = settings_of(attributes).get("study", {}).get("max_epochs_total")
    old = max_epochs_total_of(attributes)
    if new is ...:
        return
    if lenient and new == attributes.get(MAX_EPOCHS_GIVEN, created_with):
        _log_kept(study, old, new, "epochs")
        return
    _warn_if_lowered(study, old, new, "epochs")
    for name in (MAX_EPOCHS_TOTAL, MAX_EPOCHS_GIVEN) if lenient else (MAX_EPOCHS_TOTAL,):
        set_attribute(connection, STUDY_ATTRIBUTES, study_id_of(study), name, new)


def _warn_if_lowered(study: optuna.Study, old: int | None, new: int | None, nouns: str) -> None:
    if new is not None and (old is None or new < old):
        values = {"study": study.study_name, "old": NO_LIMIT if old is None else old, "new": new, "nouns": nouns}
        logger.warning(LOWERED, values)


def _log_kept(study: optuna.Study, old: int | None, new: int | None, nouns: str) -> None:
    if new != old:
        limits = {name: NO_LIMIT if limit is None else limit for name, limit in (("old", old), ("new", new))}
        logger.info(KEPT, {"study": study.study_name, "nouns": nouns} | limits)


def _new_total(
    study: optuna.Study, counts: Counts, num_trials: int | None, attributes: Mapping[str, Any], *, lenient: bool
) -> int:
    # Whether this total is the last that the study was given, and trials were added to it since.
    given, is_raised = settings_of(attributes).get("study", {}).get("num_trials"), False
    for change in target_changes_of(attributes):
        is_raised = change["more"] is not None
        given = given if is_raised else change["total"]
    if num_trials is None:
        return counts.target
    if lenient and is_raised and given == num_trials:
        _log_kept(study, counts.target, num_trials, "trials")
        return counts.target
    num_taken = counts.num_finished + counts.num_running
    num_kept = max(num_taken, min(num_taken + counts.num_waiting, counts.target)) if lenient else num_taken
    if num_trials >= num_kept:
        return num_trials
    if lenient:
        message = (
            "the study has %(total)d finished, running or waiting trials, so its total is %(total)d, not %(wanted)d"
        )
        logger.warning(message, {"total": num_kept, "wanted": num_trials})
        return num_kept
    what = f"the study has {counts.num_finished} finished and {counts.num_running} running or paused trials"
    hint = f"give at least --n-trials {num_taken}, or --more-trials K to add K"
    raise ConfigurationError(f"{what}, so its total cannot be lower", got=num_trials, hint=hint)


def _pending(counts: Counts, more_trials: int, changes: Sequence[dict[str, Any]]) -> bool:
    """Return whether an earlier run of the same command has made this addition, and it is not finished."""
    for change in reversed(changes):
        if change["more"] is None:
            return False  # --n-trials settled the total
        if change["more"] == more_trials and counts.num_finished < change["total"]:
            message = "continuing towards %(total)d trials, to which an earlier --more-trials %(more)d raised the total"
            logger.info(message, {"total": change["total"], "more": more_trials})
            return True
    return False
