"""The state of a study: the best trial so far, what is finished, what is running, how long the rest will take."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from statistics import fmean
from typing import Any, Final, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy.engine import Connection, Row

from csi_job.storage import attributes as stored
from csi_job.storage.lease import is_orphan, running_trials
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.rungs import Rungs
from csi_job.storage.storage import storage_of
from csi_job.storage.study_rows import find_study, stored_attributes
from csi_job.storage.tables import TRIALS
from csi_job.storage.trial_rows import read_trials
from csi_job.study.record import phase_of, space_settings
from csi_job.study.settings import PAUSING
from csi_job.trial.hyperparameters import HYPERPARAMETERS
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import CONFIRMATION

T = TypeVar("T")
NUM_TIMED: Final = 20  # latest finished trials whose mean duration gives the rate


@dataclass(frozen=True)
class ChosenTrial:
    """The chosen trial, and the rule that chose it in one sentence."""

    trial: FrozenTrial
    rule: str


def choose_trial(trials: Iterable[FrozenTrial], attributes: Mapping[str, Any]) -> ChosenTrial | None:
    """Return the trial with the best F1; with two objectives, the cheapest that is as good within the uncertainty.

    The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984): of all trials whose
    `val_f1` is at most one standard error below the best, the one with the fewest GFLOPs.

    Args:
        trials: all trials of a study.
        attributes: the study's user attributes.

    Returns:
        None while no trial is complete.
    """
    ranked = ranked_trials(trials, attributes)
    leader = next(ranked, None)
    if leader is None:
        return None
    best_f1 = leader.values[0]
    if len(leader.values) == 1:
        return ChosenTrial(leader, f"the best val_f1, {best_f1:.4f}")
    error = stored.f1_standard_error_of(leader)
    equals = takewhile(lambda trial: trial.values[0] >= best_f1 - (error or 0.0), ranked)
    chosen = min([leader, *equals], key=lambda trial: trial.values[1])  # of equally cheap ones the best, which is first
    within = "as high as" if error is None else f"within one standard error ({error:.4f}, by patients) of"
    rule = f"the cheapest trial whose val_f1 is {within} the best, {best_f1:.4f} of trial {leader.number}"
    return ChosenTrial(chosen, rule)


def ranked_trials(trials: Iterable[FrozenTrial], attributes: Mapping[str, Any]) -> Iterator[FrozenTrial]:
    """Yield a study's complete trials by F1, without those that another program added outside the study's space."""
    complete = (trial for trial in trials if trial.state is TrialState.COMPLETE)
    return filter(space_test(attributes), sorted(complete, key=lambda trial: (-trial.values[0], trial.number)))


def pareto_front(trials: Iterable[T], f1_and_cost: Callable[[T], tuple[float, float]]) -> list[T]:
    """Return the trials that none beats on both F1 and cost, the best F1 first; equal ones stay in their order."""
    front: list[T] = []
    for trial in sorted(trials, key=lambda trial: (-f1_and_cost(trial)[0], f1_and_cost(trial)[1])):
        last = f1_and_cost(front[-1]) if front else (0.0, math.inf)
        if f1_and_cost(trial)[1] < last[1] or f1_and_cost(trial) == last:
            front.append(trial)
    return front


def space_test(attributes: Mapping[str, Any]) -> Callable[[FrozenTrial], bool]:
    """Return the test whether a trial lies within its study's space; another program may add one that does not.

    A parameter that the trial does not have counts as its default, so only a trial that sampled all of its parameters,
    as every trial with an F1 did, can be tested.
    """
    space, forms = space_of(attributes), stored.fingerprint_of(attributes).get("space", {})

    def is_inside(trial: FrozenTrial) -> bool:
        known = {name: value for name, value in trial.params.items() if name in HYPERPARAMETERS}
        return space is None or (trial.params.keys() <= forms.keys() and space.has(known))

    return is_inside


def space_of(attributes: Mapping[str, Any]) -> SearchSpace | None:
    """Return the space among a study's attributes, without a later version's hyperparameters; None if none is known."""
    fingerprint = stored.fingerprint_of(attributes)
    if not fingerprint.get("space"):
        return None
    forms = dict.fromkeys(SearchSpace.model_fields)  # what an earlier version lacks has its default
    try:
        space: SearchSpace = SearchSpace.model_validate(forms | space_settings(fingerprint))
    except ValidationError:  # a value of a later version
        return None
    return space


@dataclass(frozen=True)
class RunningStatus:
    """A trial that is running, or that the next worker will resume."""

    number: int
    attempt: int
    epoch: int | None
    """The last finished epoch, from 0."""
    max_epochs: int | None
    f1: float | None
    """The best value so far."""
    lease_age_s: float | None
    """Since the last heartbeat; None: the trial was released."""
    is_orphan: bool
    """Whether the next worker will resume it."""
    host: str


@dataclass(frozen=True)
class BestStatus:
    """The study's result so far."""

    number: int
    f1: float
    gflops: float | None
    params: dict[str, Any]
    rule: str


@dataclass(frozen=True)
class ConfirmationStatus:
    """The trainings that choose the winner."""

    num_finished: int
    num_left: int
    running: tuple[RunningStatus, ...]
    planned_for: int
    """Finished trials of the search when they were last planned."""


@dataclass(frozen=True)
class StudyStatus:
    """A study at one moment."""

    name: str
    objective: str
    target: int
    num_complete: int
    num_pruned: int
    num_infeasible: int
    num_failed: int
    num_cancelled: int
    num_waiting: int
    running: tuple[RunningStatus, ...]
    best: BestStatus | None
    trials_per_h: float | None
    eta_s: float | None
    """Time left at that rate; None if nothing is running or nothing has finished yet."""
    failures: tuple[tuple[str, int], ...]
    """Reasons for failed trials with their counts, most frequent first."""
    confirmation: ConfirmationStatus | None = None
    """None before its trainings are planned."""
    num_paused: int = 0
    """Trials that wait for others to fall behind; no worker runs them."""
    ends_by_epochs: bool = False
    """Whether `study.max_epochs_total` will end the search before the target."""

    @property
    def claimed(self) -> tuple[RunningStatus, ...]:
        """Return what workers are running: trials, and then trainings of the confirmation."""
        return self.running + (self.confirmation.running if self.confirmation else ())

    @property
    def confirmed_after(self) -> str:
        """Return ` (after 8 of 16 trials)` if its trainings were planned before the last trial, otherwise nothing."""
        found = self.confirmation
        if found is None or found.planned_for == self.target:
            return ""
        return f" (after {found.planned_for} of {self.target} trials)"

    @property
    def is_confirmed(self) -> bool:
        """Whether every training that the present trials ask for is done."""
        found = self.confirmation
        return found is not None and found.planned_for == self.num_finished and not found.num_left

    @property
    def num_finished(self) -> int:
        """The number of trials that count towards the target."""
        return self.num_complete + self.num_pruned + self.num_infeasible

    @property
    def num_running(self) -> int:
        """The number of trials that live workers are running."""
        return sum(not trial.is_orphan for trial in self.running)

    @property
    def is_finished(self) -> bool:
        """Whether the target is reached and nothing is running."""
        return self.num_finished >= self.target and not self.running


def study_status(study: optuna.Study) -> StudyStatus:
    """Return the state of a study; later calls read only what changed."""
    trials = study.get_trials(deepcopy=False)
    storage, study_id = storage_of(study), study_id_of(study)
    leases, confirmation = storage.read(
        lambda connection: (_leases(connection, study_id), _confirmation(connection, study.study_name))
    )
    attributes = study.user_attrs
    target = stored.target_of(attributes) or 0
    outcomes = Counter(stored.outcome_of(trial) for trial in trials)
    running = tuple(_running(row, trials) for row in leases if not row.paused)
    chosen = choose_trial(trials, attributes)
    best = None
    if chosen is not None:
        values = chosen.trial.values
        gflops = values[1] if len(values) > 1 else None
        best = BestStatus(chosen.trial.number, values[0], gflops, dict(chosen.trial.params), chosen.rule)
    failed = (trial for trial in trials if stored.outcome_of(trial) == "failed")
    failures = (str(trial.user_attrs.get(stored.REASON, "unknown")) for trial in failed)
    num_left = max(target - sum(outcomes[outcome] for outcome in stored.FINISHED), 0)
    pace = (trials, attributes, num_left, sum(not trial.is_orphan for trial in running))
    to_target_s = eta_s = _seconds_left(*pace)
    if (limit := stored.max_epochs_total_of(attributes)) is not None:
        eta_s = _seconds_left(*pace, max(limit - sum(len(stored.curve_of(trial)) for trial in trials), 0))
    return StudyStatus(
        name=study.study_name,
        objective=str(attributes.get(stored.OBJECTIVE, "")),
        target=target,
        num_complete=outcomes["complete"],
        num_pruned=outcomes["pruned"],
        num_infeasible=outcomes["infeasible"],
        num_failed=outcomes["failed"],
        num_cancelled=outcomes["cancelled"],
        num_waiting=outcomes["waiting"],
        running=running,
        best=best,
        trials_per_h=num_left / to_target_s * 3600 if to_target_s else None,
        eta_s=eta_s,
        failures=tuple(Counter(failures).most_common()),
        confirmation=confirmation,
        num_paused=len(leases) - len(running),
        ends_by_epochs=eta_s != to_target_s,
    )


def _leases(connection: Connection, study_id: int) -> Sequence[Row[Any]]:
    return connection.execute(running_trials(connection, study_id).order_by(TRIALS.c.number)).all()


def _confirmation(connection: Connection, study_name: str) -> ConfirmationStatus | None:
    study_id = find_study(connection, study_name + CONFIRMATION)
    attributes = {} if study_id is None else stored_attributes(connection, study_id)
    if study_id is None or stored.PLANNED_FOR not in attributes:
        return None
    trials = read_trials(connection, study_id)
    return ConfirmationStatus(
        num_finished=sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials),
        num_left=sum(not trial.state.is_finished() for trial in trials),
        running=tuple(_running(row, trials) for row in _leases(connection, study_id)),
        planned_for=stored.count_of(attributes, stored.PLANNED_FOR) or 0,
    )


def _running(row: Row[Any], trials: Sequence[FrozenTrial]) -> RunningStatus:
    trial = next((trial for trial in trials if trial.number == row.number), None)
    curve = dict(stored.curve_of(trial)) if trial else {}
    is_silent = row.token is None or row.released
    return RunningStatus(
        number=row.number,
        attempt=row.attempt or 1,
        epoch=max(curve, default=None),
        max_epochs=stored.count_of(trial.user_attrs, stored.MAX_EPOCHS) if trial else None,
        f1=stored.best_of(curve.values()),
        lease_age_s=None if is_silent else max(row.now_s - row.renewed_at_s, 0.0),
        is_orphan=is_orphan(row),
        host=(row.owner or "").partition("|")[0],
    )


def _seconds_left(
    trials: Sequence[FrozenTrial],
    attributes: Mapping[str, Any],
    num_left: int,
    num_running: int,
    epochs_left: float = math.inf,
) -> float | None:
    """Return how long the rest takes with this many running, however long the study was idle before.

    A trial takes as long as the latest finished ones did on average. Where the pruner pauses, those that finish are the
    long ones, so epochs are counted instead. After `epochs_left`, only what is running is finished.
    """
    phase = next((phase for trial in reversed(trials) if stored.PRUNER in (phase := phase_of(trial))), {})
    if phase.get(stored.PRUNER) not in PAUSING or not {stored.MIN_RESOURCE, stored.REDUCTION_FACTOR} <= phase.keys():
        # One that is still paused ends without running again.
        num_left -= sum(stored.outcome_of(trial) == "paused" for trial in trials)
        finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        seconds = [length for trial in finished[-NUM_TIMED:] if (length := stored.seconds_of(trial)) is not None]
        num_epochs = fmean([len(stored.curve_of(trial)) for trial in finished[-NUM_TIMED:]] or [1])
        amount = min(max(num_left, 0), num_running + epochs_left / max(num_epochs, 1))
    else:
        timed = [
            (length, len(stored.curve_of(trial)))
            for trial in trials
            if (length := stored.seconds_of(trial)) is not None
        ]
        seconds = [length / num_epochs for length, num_epochs in timed if num_epochs][-NUM_TIMED:]
        amount = max(min(_epochs_left(trials, attributes, phase), epochs_left), num_running)
    if not num_running or not seconds or fmean(seconds) <= 0:
        return None
    return amount * fmean(seconds) / num_running


def _epochs_left(trials: Sequence[FrozenTrial], attributes: Mapping[str, Any], phase: Mapping[str, Any]) -> int:
    """Return how many epochs are left where one of `reduction_factor` trials continues at each rung.

    Early stopping shortens trials, so the last rung ends where the complete ones did on average.
    """
    first, factor = phase[stored.MIN_RESOURCE], phase[stored.REDUCTION_FACTOR]
    brackets: defaultdict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        if trial.state is not TrialState.FAIL and stored.count_of(trial.user_attrs, stored.MAX_EPOCHS):
            brackets[stored.count_of(trial.user_attrs, stored.BRACKET) or 0].append(trial)
    num_started, left = sum(map(len, brackets.values())), 0
    for bracket, rivals in brackets.items():
        complete = [len(stored.curve_of(trial)) for trial in rivals if trial.state is TrialState.COMPLETE]
        end = round(fmean(complete)) if complete else rivals[-1].user_attrs[stored.MAX_EPOCHS]
        number = round((stored.target_of(attributes) or 0) * len(rivals) / num_started)
        rungs = [*Rungs(first, factor, bracket).below(end), end]
        # What a finished trial did not train, nobody will.
        at_least = {TrialState.COMPLETE: end, TrialState.PRUNED: rungs[0]}
        epochs = [max(len(stored.curve_of(trial)), at_least.get(trial.state, 0)) for trial in rivals]
        for low, high in pairwise([0, *rungs]):
            done = sum(min(max(num_epochs - low, 0), high - low) for num_epochs in epochs)
            left += max(number * (high - low) - done, 0)
            number = max(number // factor, 1)
    return left
