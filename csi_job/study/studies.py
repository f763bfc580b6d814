"""The studies of a storage: list and delete them, enqueue parameters."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.trial import TrialState, create_trial
from sqlalchemy.engine import Connection, Row

from csi_job.errors import ConfigurationError, NoStudyError
from csi_job.files import digest, json_text, read_json, write_file
from csi_job.storage.attributes import FIXED_PARAMS, OBJECTIVE, STUDY_UID, is_same_uid, target_of, uid_of
from csi_job.storage.claim import Counts, count_trials
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import StudyStorage, open_storage, storage_of
from csi_job.storage.study_rows import decoded_uid, find_identity, store_target
from csi_job.storage.url import Address
from csi_job.study.attempts import remove_all_checkpoints, remove_foreign_checkpoints
from csi_job.study.definition import check_same, load_study
from csi_job.study.record import require_fingerprint
from csi_job.study.settings import can_be_ours
from csi_job.trial.hyperparameters import parse_value
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import CONFIRMATION, WorkFolder

logger = logging.getLogger(__name__)
DATABASE: Final = "database"


@dataclass(frozen=True)
class ListedStudy:
    """One entry of the list."""

    name: str
    objective: str
    """`""` for a study of another program."""
    counts: Counts | None
    """None for a study of another program, which has no target."""


def list_studies(storage: StudyStorage) -> list[ListedStudy]:
    """Return the studies of a storage, oldest first, without those that confirm others."""
    return [
        ListedStudy(
            study.study_name,
            str(study.user_attrs.get(OBJECTIVE, "")),
            storage.read(functools.partial(count_trials, study_id=study_id_of(study)))
            if target_of(study.user_attrs) is not None
            else None,
        )
        for study in storage.get_all_studies()
        if not study.study_name.endswith(CONFIRMATION)
    ]


def open_study(settings: StorageSettings, work: Path, name: str) -> optuna.Study:
    """Open a study for reading; never create anything.

    Raises:
        ConfigurationError: there is no such database or study.
        StorageUnavailableError: the database could not be reached within `connect_s`.
    """
    return load_study(open_storage(settings, work, create=False), name)


def claim_results(study: optuna.Study, folder: WorkFolder) -> None:
    """Let a study write its results to `models/`; see `results_owner`.

    When it takes them over from a study of its name that is gone, e.g. with its database, that one's checkpoints go.
    """
    name, uid, storage = study.study_name, uid_of(study.user_attrs), storage_of(study)
    owner = results_owner(folder, name, uid, storage.address)
    path = folder.owner(name)
    known = read_json(path)
    if owner != known:
        write_file(path, json_text(owner))
    if not is_same_uid((known or {}).get(STUDY_UID), uid):
        confirmation = storage.read(functools.partial(find_identity, name=name + CONFIRMATION))
        remove_foreign_checkpoints(folder.root, name, {str(uid), *_uid_of_row(confirmation)})


def _uid_of_row(found: Row[Any] | None) -> list[str]:
    return [] if found is None else [decoded_uid(found.uid)]


def results_owner(folder: WorkFolder, name: str, uid: str | None, database: Address) -> dict[str, str | None]:
    """Return what tells a study's results in `models/` from those of one of the same name in another database.

    A study may be moved or copied to another database, or deleted and created again in the same one.

    Raises:
        ConfigurationError: the results that are there are of another study.
    """
    path = folder.owner(name)
    owner = {STUDY_UID: uid, DATABASE: digest(database.place(folder.root))[:16]}
    known = read_json(path) or owner
    if known.get(DATABASE) != owner[DATABASE] and not is_same_uid(known.get(STUDY_UID), uid):
        what = f"{folder.hyperopt} has the results of another study of this name, which is in another database"
        gone = f"if that study no longer exists, delete {path} and {folder.checkpoints(name)}"
        hint = f"choose another study.name or work folder; {gone}"
        raise ConfigurationError(what, got=name, hint=hint)
    return owner


def delete_study(study: optuna.Study, work: Path) -> None:
    """Delete a study with its trials, confirmation and checkpoints; models and reports stay.

    Raises:
        ConfigurationError: it was deleted already, even if there is another one of its name.
    """
    storage, beside = storage_of(study), study.study_name + CONFIRMATION
    confirmation = storage.read(functools.partial(find_identity, name=beside))
    try:
        uid = uid_of(study.user_attrs) or ""
        storage.delete_study(study_id_of(study), beside=beside)
    except (KeyError, NoStudyError):
        raise NoStudyError("another command has deleted the study", got=study.study_name) from None
    if can_be_ours(study.study_name):  # `..`, of another program's study, would lead to other folders
        for uid_beside in _uid_of_row(confirmation):
            remove_all_checkpoints(work, beside, uid_beside)
        remove_all_checkpoints(work, study.study_name, uid)


def enqueue_trial(
    study: optuna.Study, space: SearchSpace, params: Mapping[str, Any], *, raise_total: bool = False
) -> int:
    """Let the next free worker try these parameters; the sampler chooses the others.

    Args:
        study: the study.
        space: its search space.
        params: values by name; one whose condition fails is ignored, with a warning.
        raise_total: raise the total of a full study as far as this trial needs.

    Returns:
        the number of the waiting trial.

    Raises:
        ConfigurationError: an unknown parameter, a value or space that is not the study's, or a full study.
    """
    fingerprint = require_fingerprint(study.user_attrs, study.study_name)
    check_same({"space": fingerprint.get("space")}, {"space": space.fingerprint()}, study.study_name)
    study_id = study_id_of(study)
    given = {name: parse_value(name, value) for name, value in params.items()}
    space.check(given)
    active, adjustments = space.clip_to_space(given)
    for adjustment in adjustments:
        logger.warning("%s", adjustment)
    trial = create_trial(state=TrialState.WAITING, system_attrs={FIXED_PARAMS: active})

    def make_room(connection: Connection) -> None:
        counts = count_trials(connection, study_id)
        if counts.num_free > 0:
            return
        if not raise_total:
            message = f"the study's total of {counts.target} trials leaves no room for another"
            raise ConfigurationError(message, hint="raise it with `csi-job study enqueue --raise-total`")
        store_target(connection, study_id, counts.target + 1 - counts.num_free)

    return storage_of(study).create_trial(study_id, trial, check=make_room).number
