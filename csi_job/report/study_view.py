"""The study as the report sees it, read once: every trial with its outcome and phase, and the chosen trial."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from csi_job.storage import attributes as stored
from csi_job.storage.trial_rows import local_time
from csi_job.study.importances import Importances, param_importances
from csi_job.study.status import choose_trial, space_of, space_test


@dataclass(frozen=True)
class Phase:
    """Trials run with one sampler, one pruner with its rungs, and one number of epochs.

    Phases are numbered from 1 in order of appearance.
    """

    number: int = field(compare=False)
    sampler: str
    pruner: str
    max_epochs: int | None
    min_resource: int | None = None
    reduction_factor: int | None = None
    num_startup_trials: int | None = field(default=None, compare=False)

    @property
    def options(self) -> dict[str, Any]:
        """Return the phase's settings by name; None where they are unknown."""
        return {name: getattr(self, name) for name in stored.PHASE}

    @property
    def pruning(self) -> str:
        """Return e.g. `median`, or `asha (3, 6, 12, …)` with its rungs."""
        first, factor = self.min_resource, self.reduction_factor
        if first is None or factor is None:
            return self.pruner
        return f"{self.pruner} ({first}, {first * factor}, {first * factor**2}, …)"

    @property
    def label(self) -> str:
        """Return e.g. `phase 2: tpe, median, 30 epochs`."""
        epochs = f", {self.max_epochs} epochs" if self.max_epochs else ""
        return f"phase {self.number}: {self.sampler}, {self.pruning}{epochs}"


@dataclass(frozen=True, eq=False)
class Run:
    """A time in which a trial ran without a pause."""

    start: datetime
    end: datetime | None
    """None while it runs."""
    worker: str
    """Host and process, of several attempts those of the last; empty if unknown."""


@dataclass(frozen=True)
class TrialView:
    """One trial."""

    number: int
    outcome: stored.TrialOutcome
    f1: float | None
    """The final validation F1; of a trial that is not complete, the best so far."""
    f1_error: float | None
    """Its standard error over patients."""
    params: dict[str, Any]
    """Of a waiting trial, those it was enqueued with."""
    phase: Phase | None
    curve: tuple[tuple[int, float], ...]
    """Epochs, from 0, and their validation F1."""
    losses: tuple[tuple[int, float, float], ...]
    """Epochs, from 0, their training and their validation loss; empty in a study made before they were stored."""
    is_baseline: bool
    num_epochs: int
    seconds: float | None
    """From start to end, without pauses."""
    runs: tuple[Run, ...]
    """Several if it was paused; none before it starts."""
    gflops: float | None
    images_per_s: float | None
    num_parameters: int | None
    micro_batch: int | None
    """Images computed at once; less than the batch where memory ran out."""
    reason: str


@dataclass(frozen=True)
class StudyView:
    """A study at one moment."""

    name: str
    trials: tuple[TrialView, ...]
    phases: tuple[Phase, ...]
    distributions: dict[str, BaseDistribution]
    has_cost: bool
    """Whether the study has two objectives, F1 and cost."""
    target: int | None
    attributes: dict[str, Any]
    best: TrialView | None
    """The trial that `choose_trial` chooses; None while none is complete."""
    rule: str
    """How it was chosen, a phrase."""
    frozen_trials: list[FrozenTrial] = field(repr=False)
    outside: frozenset[int]
    """The numbers of the trials with an F1 that another program added outside the study's space."""

    def with_outcome(self, *outcomes: stored.TrialOutcome) -> list[TrialView]:
        """Return the trials with these outcomes, by number."""
        return [trial for trial in self.trials if trial.outcome in outcomes]

    def counts(self) -> dict[stored.TrialOutcome, int]:
        """Return the number of trials of each outcome."""
        counted = Counter(trial.outcome for trial in self.trials)
        return {outcome: counted[outcome] for outcome in stored.OUTCOMES}

    @property
    def num_finished(self) -> int:
        """Return the number of trials that count toward the target."""
        return len(self.with_outcome(*stored.FINISHED))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that define the study; empty if it has none."""
        return stored.fingerprint_of(self.attributes)

    @cached_property
    def inside(self) -> list[TrialView]:
        """Return the trials without those that are `outside`, by number."""
        return [trial for trial in self.trials if trial.number not in self.outside]

    @property
    def no_trial(self) -> str:
        """Return the subject of a sentence that none has something yet, which those `outside` may have."""
        return "No trial within the search space" if self.outside else "No trial"

    @cached_property
    def scored(self) -> list[TrialView]:
        """Return those of `inside` that have an F1, by number."""
        return [trial for trial in self.inside if trial.f1 is not None]

    @cached_property
    def ranked(self) -> list[TrialView]:
        """Return the complete ones of `scored`, best validation F1 first, ties by number."""
        complete = [trial for trial in self.scored if trial.outcome == "complete"]
        return sorted(complete, key=lambda trial: -(trial.f1 or 0.0))

    @cached_property
    def baseline(self) -> TrialView | None:
        """Return the baseline's trial if it is complete."""
        return next((trial for trial in self.with_outcome("complete") if trial.is_baseline), None)

    def others(self, trials: Iterable[TrialView]) -> list[TrialView]:
        """Return trials without the best one and the baseline, which figures mark."""
        return [trial for trial in trials if trial is not self.best and trial is not self.baseline]

    def is_log(self, name: str) -> bool:
        """Return whether a hyperparameter is searched on a logarithmic scale."""
        return bool(getattr(self.distributions[name], "log", False))

    @cached_property
    def importances(self) -> Importances:
        """Return the importance of each hyperparameter that varies; see `param_importances`."""
        frozen = {trial.number: trial for trial in self.frozen_trials}
        return param_importances([frozen[trial.number] for trial in self.ranked], self.distributions)


def view_study(study: Study) -> StudyView:
    """Read a study once; attributes that are absent are left out of the view."""
    frozen_trials = study.get_trials(deepcopy=False)
    phases: list[Phase] = []
    attributes = study.user_attrs
    trials = tuple(_view_trial(frozen, phases) for frozen in frozen_trials)
    chosen = choose_trial(frozen_trials, attributes)
    space, is_inside = space_of(attributes), space_test(attributes)
    used = {name: kind for frozen in frozen_trials[::-1] for name, kind in frozen.distributions.items()}
    searched = space.distributions() if space else {}
    return StudyView(
        name=study.study_name,
        trials=trials,
        phases=tuple(phases),
        distributions={name: searched.get(name, kind) for name, kind in used.items()},
        has_cost=len(study.directions) > 1,
        target=stored.target_of(attributes),
        attributes=attributes,
        best=next((trial for trial in trials if chosen and trial.number == chosen.trial.number), None),
        rule=chosen.rule if chosen else "",
        frozen_trials=frozen_trials,
        outside=frozenset(
            trial.number
            for trial, frozen in zip(trials, frozen_trials, strict=True)
            if trial.f1 is not None and not is_inside(frozen)  # before that, not all parameters may have been sampled
        ),
    )


def view_phase(frozen: FrozenTrial, number: int = 0) -> Phase | None:
    """Return the phase that a trial ran in, under this number; None of one that has not started."""
    attrs = frozen.user_attrs
    if stored.SAMPLER not in attrs:
        return None
    return Phase(
        number,
        sampler=str(attrs[stored.SAMPLER]),
        pruner=str(attrs.get(stored.PRUNER, "none")),
        max_epochs=stored.count_of(attrs, stored.MAX_EPOCHS) or None,
        min_resource=stored.count_of(attrs, stored.MIN_RESOURCE),
        reduction_factor=stored.count_of(attrs, stored.REDUCTION_FACTOR),
        num_startup_trials=stored.count_of(attrs, stored.NUM_STARTUP_TRIALS),
    )


def _view_trial(frozen: FrozenTrial, phases: list[Phase]) -> TrialView:
    attrs = frozen.user_attrs
    curve = tuple((epoch, f1) for epoch, f1 in stored.curve_of(frozen) if math.isfinite(f1))
    epochs = {epoch for epoch, _ in curve}
    phase = view_phase(frozen, len(phases) + 1)
    if phase is not None and phase not in phases:
        phases.append(phase)
    phase = next((known for known in phases if known == phase), None)
    runs: list[Run] = []
    if frozen.datetime_start is not None:
        runs = [Run(frozen.datetime_start, frozen.datetime_complete, str(attrs.get(stored.WORKER, "")))]
    if paused := stored.runs_of(frozen):
        runs = [Run(_time(first), None if last is None else _time(last), worker) for first, last, worker in paused]
    is_final = frozen.state is TrialState.COMPLETE and frozen.values
    fixed = frozen.system_attrs.get(stored.FIXED_PARAMS) if frozen.state is TrialState.WAITING else None
    f1 = frozen.values[0] if is_final else max((f1 for _, f1 in curve), default=None)
    return TrialView(
        number=frozen.number,
        outcome=stored.outcome_of(frozen),
        f1=f1 if f1 is not None and math.isfinite(f1) else None,
        f1_error=stored.f1_standard_error_of(frozen),
        params=dict(frozen.params or (fixed if isinstance(fixed, dict) else {})),
        phase=phase,
        curve=curve,
        losses=tuple(row for row in stored.rows_of(frozen, stored.LOSSES, int, float, float) if row[0] in epochs),
        is_baseline=bool(attrs.get(stored.BASELINE)),
        num_epochs=stored.count_of(attrs, stored.EPOCHS) or len(curve),
        seconds=stored.seconds_of(frozen),
        runs=tuple(runs),
        gflops=stored.number_of(attrs, stored.GFLOPS),
        images_per_s=stored.number_of(attrs, stored.IMAGES_PER_S),
        num_parameters=stored.count_of(attrs, stored.NUM_PARAMETERS),
        micro_batch=stored.count_of(attrs, stored.MICRO_BATCH),
        reason=" ".join(str(attrs.get(stored.REASON, "")).split()),
    )


def _time(time_s: float) -> datetime:
    """Return a time as `FrozenTrial` has it."""
    return local_time(datetime.fromtimestamp(time_s, UTC))
