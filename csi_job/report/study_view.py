"""The study as the report sees it: every trial once, told apart by outcome and phase."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from csi_job.storage.attributes import (
    ATTEMPT,
    BASELINE,
    BEST_EPOCH,
    CURVE,
    EPOCHS,
    F1_STD,
    GFLOPS,
    IMAGES_PER_S,
    MAX_EPOCHS,
    MICRO_BATCH,
    NUM_PARAMETERS,
    OUTCOMES,
    PRUNER,
    REASON,
    SAMPLER,
    TARGET,
    TrialOutcome,
    outcome_of,
)
from csi_job.study.status import choose_trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Phase:
    """Trials made with one sampler, pruner and number of epochs; `number` counts phases from 1 as they appeared."""

    number: int
    sampler: str
    pruner: str
    max_epochs: int | None

    @property
    def label(self) -> str:
        """Return e.g. `phase 2: tpe, median, 30 epochs`."""
        epochs = f", {self.max_epochs} epochs" if self.max_epochs else ""
        return f"phase {self.number}: {self.sampler}, {self.pruner}{epochs}"


@dataclass(frozen=True)
class TrialView:
    """One trial.

    Args:
        f1: the final validation F1, or the best so far.
        f1_error: its standard error over patients.
        curve: validation F1 by epoch, from epoch 0.
        seconds: from start to end.

    """

    number: int
    outcome: TrialOutcome
    f1: float | None
    f1_error: float | None
    params: dict[str, Any]
    phase: Phase | None
    curve: tuple[tuple[int, float], ...]
    is_baseline: bool
    num_epochs: int
    best_epoch: int | None
    seconds: float | None
    gflops: float | None
    images_per_s: float | None
    num_parameters: int | None
    micro_batch: int | None
    attempt: int
    reason: str


@dataclass(frozen=True)
class StudyView:
    """What the report needs of a study, read once."""

    name: str
    trials: tuple[TrialView, ...]
    phases: tuple[Phase, ...]
    distributions: dict[str, BaseDistribution]
    has_cost: bool
    target: int | None
    attributes: dict[str, Any]

    def with_outcome(self, *outcomes: TrialOutcome) -> list[TrialView]:
        """Return the trials of these outcomes, by number."""
        return [trial for trial in self.trials if trial.outcome in outcomes]

    def counts(self) -> dict[TrialOutcome, int]:
        """Return the number of trials of each outcome."""
        counted = Counter(trial.outcome for trial in self.trials)
        return {outcome: counted[outcome] for outcome in OUTCOMES}

    @property
    def num_finished(self) -> int:
        """Return the number of trials that count against the target: complete, pruned or infeasible."""
        return len(self.with_outcome("complete", "pruned", "infeasible"))

    def ranked(self) -> list[TrialView]:
        """Return the complete trials, best validation F1 first, the earlier one first where equal."""
        scored = [trial for trial in self.with_outcome("complete") if trial.f1 is not None]
        return sorted(scored, key=lambda trial: (-(trial.f1 or 0.0), trial.number))

    @cached_property
    def baseline(self) -> TrialView | None:
        """Return the baseline's trial, if it is complete."""
        return next((trial for trial in self.with_outcome("complete") if trial.is_baseline), None)

    def trial(self, number: int) -> TrialView | None:
        """Return the trial of this number, if there is one."""
        return next((trial for trial in self.trials if trial.number == number), None)


def view_study(study: Study) -> StudyView:
    """Read a study once.

    Args:
        study: a study with the attributes that `study/` writes; absent ones are left out of the view.

    """
    frozen_trials = study.get_trials(deepcopy=False)
    phases: dict[tuple[str, str, int | None], Phase] = {}
    trials = tuple(_view_trial(frozen, phases) for frozen in frozen_trials)
    attributes = study.user_attrs
    target = attributes.get(TARGET)
    return StudyView(
        name=study.study_name,
        trials=trials,
        phases=tuple(phases.values()),
        distributions=_distributions(frozen_trials),
        has_cost=len(study.directions) > 1,
        target=target if isinstance(target, int) else None,
        attributes=attributes,
    )


def choices_of(distribution: BaseDistribution, trials: Sequence[TrialView], name: str) -> list[Any]:
    """Return the choices of a categorical parameter that some trial took, in the order of the space."""
    taken = {trial.params.get(name) for trial in trials}
    return [choice for choice in getattr(distribution, "choices", ()) if choice in taken]


def is_categorical(distribution: BaseDistribution) -> bool:
    """Return whether the parameter is one of a list of choices."""
    return isinstance(distribution, CategoricalDistribution)


def is_log(distribution: BaseDistribution) -> bool:
    """Return whether the parameter is searched on a logarithmic scale."""
    return isinstance(distribution, (FloatDistribution, IntDistribution)) and distribution.log


def _view_trial(frozen: FrozenTrial, phases: dict[tuple[str, str, int | None], Phase]) -> TrialView:
    attrs = frozen.user_attrs
    curve = _curve(frozen)
    return TrialView(
        number=frozen.number,
        outcome=outcome_of(frozen.state, attrs),
        f1=_f1(frozen, curve),
        f1_error=_number(attrs.get(F1_STD)),
        params=dict(frozen.params),
        phase=_phase(attrs, phases),
        curve=curve,
        is_baseline=bool(attrs.get(BASELINE)),
        num_epochs=attrs.get(EPOCHS) or len(curve),
        best_epoch=attrs.get(BEST_EPOCH),
        seconds=frozen.duration.total_seconds() if frozen.duration else None,
        gflops=_number(attrs.get(GFLOPS)),
        images_per_s=_number(attrs.get(IMAGES_PER_S)),
        num_parameters=attrs.get(NUM_PARAMETERS),
        micro_batch=attrs.get(MICRO_BATCH),
        attempt=attrs.get(ATTEMPT) or 1,
        reason=" ".join(str(attrs.get(REASON, "")).split()),
    )


def _curve(frozen: FrozenTrial) -> tuple[tuple[int, float], ...]:
    # With two objectives Optuna refuses intermediate values, so the curve is an attribute there.
    pairs = frozen.user_attrs.get(CURVE) or sorted(frozen.intermediate_values.items())
    return tuple((int(epoch), float(value)) for epoch, value in pairs if _number(value) is not None)


def _f1(frozen: FrozenTrial, curve: tuple[tuple[int, float], ...]) -> float | None:
    if frozen.state == TrialState.COMPLETE and frozen.values:
        return _number(frozen.values[0])
    return max((value for _, value in curve), default=None)


def _phase(attrs: dict[str, Any], phases: dict[tuple[str, str, int | None], Phase]) -> Phase | None:
    if SAMPLER not in attrs:
        return None
    key = (str(attrs[SAMPLER]), str(attrs.get(PRUNER, "none")), attrs.get(MAX_EPOCHS))
    return phases.setdefault(key, Phase(len(phases) + 1, *key))


def _distributions(frozen_trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    distributions: dict[str, BaseDistribution] = {}
    for frozen in frozen_trials:
        for name, distribution in frozen.distributions.items():
            distributions.setdefault(name, distribution)
    return distributions


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


@dataclass(frozen=True)
class Choice:
    """The chosen trial, None while none is complete, and the rule that chose it, a phrase."""

    trial: TrialView | None
    rule: str = ""


def chosen_trial(study: Study, view: StudyView) -> Choice:
    """Return the trial that `study.choose` chooses."""
    chosen = choose_trial(study)
    if chosen is None:
        return Choice(None)
    return Choice(view.trial(chosen.trial.number), chosen.rule)
