"""The confirmation of a study: the trainings that choose its winner, as the trials of a study beside it.

In the study itself they would count toward its total, and samplers, pruners, the best trial, the report and Optuna's
dashboard would take them for its results. Beside it they have the same claims, leases and checkpoints as any trial.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Connection

from csi_job.storage.attributes import CANCELLED, MAX_EPOCHS, PLANNED_FOR, REASON, TARGET, UID
from csi_job.storage.database import study_deleted
from csi_job.storage.engine import lock_schema
from csi_job.storage.lease import new_token
from csi_job.storage.optuna_private import study_id_of, trial_id_of
from csi_job.storage.storage import storage_of
from csi_job.storage.study_rows import find_study, set_attribute, store_target, stored_attributes
from csi_job.storage.tables import STUDY_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, add_trial, read_trials, write_rows
from csi_job.study.definition import insert_study, load_study
from csi_job.work_folder import CONFIRMATION

TRAINING: Final = "training"  # attribute of a trial: which training it is

Key = tuple[str, int]


@dataclass(frozen=True)
class Progress:
    """How far a confirmation is."""

    num_finished: int
    num_left: int
    """Trainings that are waiting or running."""


@dataclass(frozen=True)
class Training:
    """One training of the confirmation."""

    digest: str
    """Of everything but the seed that decides its result."""
    seed: int
    params: Mapping[str, Any]
    max_epochs: int
    name: str
    """Whose hyperparameters these are: `trial 3`, or `baseline`."""

    def __str__(self) -> str:
        """Describe it in logs."""
        return f"{self.name}, seed {self.seed}"

    @property
    def key(self) -> Key:
        """What no two trainings of a confirmation share."""
        return self.digest, self.seed


def training_of(trial: optuna.Trial | FrozenTrial) -> Training:
    """Return which training a trial of a confirmation is."""
    return Training(**trial.user_attrs[TRAINING])


def latest(trials: Iterable[FrozenTrial]) -> dict[Key, FrozenTrial]:
    """Return the trials of a confirmation by key, the last of each; failed and cancelled ones are none."""
    counted = (trial for trial in trials if trial.state is not TrialState.FAIL and _is_training(trial))
    return {training_of(trial).key: trial for trial in counted}


def _is_training(trial: FrozenTrial) -> bool:
    """Return whether a trial of a confirmation is one of its trainings; another program may add others."""
    training = trial.user_attrs.get(TRAINING)
    return isinstance(training, dict) and training.keys() == {field.name for field in fields(Training)}


def open_confirmation(study: optuna.Study) -> optuna.Study:
    """Open the confirmation of a study; the first process creates it, without trials.

    Raises:
        NoStudyError: the study was deleted, even if there is another one of its name.
    """
    storage, name = storage_of(study), study.study_name + CONFIRMATION

    def transaction(connection: Connection) -> Any:
        lock_schema(connection)
        storage.lock(connection, study_id_of(study))
        study_id = find_study(connection, name)
        if study_id is None:
            insert_study(connection, name, "f1", {TARGET: 0, UID: (uid := new_token()[:8])})
            return uid
        return stored_attributes(connection, study_id).get(UID)

    uid = storage.write(transaction)
    confirmation = load_study(storage, name)
    if confirmation.user_attrs.get(UID) != uid:  # both were deleted since, and others made
        raise study_deleted()
    return confirmation


def plan(
    confirmation: optuna.Study, choose: Callable[[Sequence[FrozenTrial]], Iterable[Training]], num_searched: int
) -> Progress:
    """Enqueue the trainings that are missing, and cancel the waiting ones that no longer matter.

    One transaction under the confirmation's lock, which adds nothing that is there: any number of processes may plan at
    any time, and each training is enqueued once.

    Args:
        confirmation: from `open_confirmation`.
        choose: returns the trainings that decide the winner, given the trials so far.
        num_searched: finished trials of the search at present.
    """
    storage, study_id = storage_of(confirmation), study_id_of(confirmation)

    def transaction(connection: Connection) -> Progress:
        storage.lock(connection, study_id)
        trials = read_trials(connection, study_id)
        present = latest(trials)
        wanted = {training.key: training for training in choose(trials)}
        for key in [key for key, trial in present.items() if trial.state is TrialState.WAITING and key not in wanted]:
            attributes = {CANCELLED: True, REASON: "it can no longer change which candidate wins"}
            write = TrialWrite(user_attrs=attributes, state=TrialState.FAIL)
            write_rows(connection, trial_id_of(present.pop(key)), write)
        missing = [training for key, training in wanted.items() if key not in present]
        for training in missing:
            attributes = {TRAINING: asdict(training), MAX_EPOCHS: training.max_epochs}
            add_trial(connection, study_id, create_trial(state=TrialState.WAITING, user_attrs=attributes))
        num_left = len(missing) + sum(not trial.state.is_finished() for trial in present.values())
        num_done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        store_target(connection, study_id, num_done + num_left)
        set_attribute(connection, STUDY_ATTRIBUTES, study_id, PLANNED_FOR, num_searched)
        return Progress(num_done, num_left)

    return storage.write(transaction)
