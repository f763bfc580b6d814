"""Which trials of a study are trials of another search space too, and why the others are not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from optuna.distributions import BaseDistribution, distribution_to_json

from csi_job.errors import ConfigurationError
from csi_job.study.attributes import BASELINE, FINGERPRINT, MIGRATED_FROM, UID
from csi_job.study.definition import SearchedSpace
from csi_job.study.outcome import outcome_of
from csi_job.study.stored import StoredTrial
from csi_job.trial.hyperparameters import DEFAULTS

# What else Optuna keeps with a trial belongs to the space it was drawn from, e.g. the state of CMA-ES.
KEPT: Final = ("constraints", "completed_rung_")
FINISHED: Final = ("complete", "pruned", "infeasible")
UNFINISHED: Final = {"running": "still running", "waiting": "still waiting"}
Origin = tuple[Any, int]
"""The uid of the study where a trial was trained, and its number there."""


class FittingSpace(SearchedSpace, Protocol):
    """What a migration needs to know of a search space."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter, conditional ones too."""

    def fitted(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Return a trial's parameters as one of this space has them, or nothing and the reason."""


def origin_of(attribute: Mapping[str, Any]) -> Origin:
    """Return where a carried trial was trained."""
    return attribute["uid"], int(attribute["trial"])


@dataclass
class Fitting:
    """Turns trials of an old study into those of a new one; counts what could not be turned."""

    old_name: str
    old: Mapping[str, Any]
    """Attributes of the old study."""
    new_uid: str | None
    space: FittingSpace
    origins: set[Origin]
    """Where the trials that the new study has were trained."""
    baseline: Mapping[str, Any] | None
    """The new study's baseline, if an equal one of the old study is to take its place."""
    reasons: Counter[str] = field(default_factory=Counter)
    num_there: int = 0

    def __post_init__(self) -> None:
        """Note what the old study used without drawing it, where that is another default now, and how the new draws."""
        forms = self.old[FINGERPRINT].get("space", {})
        unsearched = {
            name: form["value"] for name, form in forms.items() if isinstance(form, Mapping) and form.get("dropped")
        }
        self._others = {name: value for name, value in unsearched.items() if value != DEFAULTS.get(name)}
        kinds = self.space.distributions()
        self._distributions = {name: (kind, distribution_to_json(kind)) for name, kind in kinds.items()}

    def fitted(self, trial: StoredTrial) -> StoredTrial | None:
        """Return a trial as one of the new study, but for its number; None if it is none, or there already."""
        outcome = outcome_of(trial.state, trial.user_attributes())
        if outcome not in FINISHED:
            self.reasons[UNFINISHED.get(outcome, outcome)] += 1
            return None
        given = {"study": self.old_name, "uid": self.old.get(UID), "trial": trial.number}
        origin = json.loads(trial.user_attrs.get(MIGRATED_FROM, json.dumps(given)))
        if origin_of(origin) in self.origins or origin["uid"] == self.new_uid:
            self.num_there += 1
            return None
        try:
            params, reason = self.space.fitted(self._others | trial.external_params())
        except ConfigurationError as error:  # a hyperparameter or value that this version does not know
            params, reason = {}, str(error)
        if reason:
            self.reasons[reason] += 1
            return None
        return self._carried(trial, params, origin)

    def _carried(self, trial: StoredTrial, params: Mapping[str, Any], origin: Mapping[str, Any]) -> StoredTrial:
        user_attrs = trial.user_attrs | {MIGRATED_FROM: json.dumps(origin)}
        if params != self.baseline:
            user_attrs.pop(BASELINE, None)
        internal = {}
        for name, value in params.items():
            kind, text = self._distributions[name]
            internal[name] = (float(kind.to_internal_repr(value)), text)
        notes = {key: text for key, text in trial.system_attrs.items() if key.startswith(KEPT)}
        return replace(trial, params=internal, user_attrs=user_attrs, system_attrs=notes)
