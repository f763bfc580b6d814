"""The search space: data from the settings, checked, and handed to Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, Field, create_model, model_validator

from csi_job.errors import ConfigurationError, OutsideSpaceError
from csi_job.settings import Section
from csi_job.trial.hyperparameters import DEFAULTS, HYPERPARAMETERS, Hyperparameters, Value, parse_value
from csi_job.trial.parameter import Parameter, check_of, reject

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

_SPACE_FIELDS: Final[dict[str, Any]] = {
    name: (
        Annotated[Parameter | None, AfterValidator(check_of(name))],
        Field(default=Parameter(**entry.space), description=entry.meaning),
    )
    for name, entry in HYPERPARAMETERS.items()
}
_BASELINE_FIELDS: Final[dict[str, Any]] = {
    name: (Annotated[entry.kind, AfterValidator(entry.parse)], Field(default=entry.default, description=entry.meaning))
    for name, entry in HYPERPARAMETERS.items()
}


class SearchSpace(create_model("SpaceFields", __base__=Section, **_SPACE_FIELDS)):  # type: ignore[misc]
    """The hyperparameters to search.

    A user's entry for a parameter replaces the default entry, except for its `when`, which stays unless one is given
    (`when: {}` removes it). `null` drops a parameter: it is not searched and takes its default (`{value: …}` fixes it
    at another value).
    """

    @model_validator(mode="before")
    @classmethod
    def _keep_conditions(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        return {name: _with_default_condition(name, form) for name, form in given.items()}

    @model_validator(mode="after")
    def _conditions_can_be_decided(self) -> SearchSpace:
        parameters = self.parameters
        for name, parameter in parameters.items():
            for parent, _ in parameter.conditions:
                if parent in parameters and parameters[parent].is_range:
                    message = "a condition needs a parameter with choices or a value, not a range"
                    reject((name, "when", parent), message, parent)
        parents_first(parameters)
        return self

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters that are searched or fixed, by name, in the order of the hyperparameters."""
        return {name: form for name, form in self if form is not None}

    def suggest(self, trial: BaseTrial) -> Hyperparameters:
        """Let Optuna sample each parameter whose condition holds; the others keep their defaults.

        Raises:
            OutsideSpaceError: another program enqueued the trial with values that are not in this space.
        """
        from csi_job.storage.optuna_private import enqueued_params

        params: dict[str, Value] = {}
        try:
            self.check(enqueued_params(trial))
            for name, parameter in parents_first(self.parameters).items():
                if self._is_active(parameter, params):
                    params[name] = parameter.suggest(trial, name)
            self.check(params)  # of a resumed trial, whose values Optuna takes as they are stored
        except ConfigurationError as error:
            raise OutsideSpaceError(f"not trained: {error}") from None
        return Hyperparameters.from_params(params)

    def check(self, params: Mapping[str, Any]) -> None:
        """Reject values that are not in the space; Optuna would use those of an enqueued trial as they are.

        Raises:
            ConfigurationError: an unknown name or such a value.
        """
        for name, value in params.items():
            parsed = parse_value(name, value)
            parameter = self.parameters.get(name)
            if parameter is not None and not parameter.allows(parsed if parameter.is_range else value):
                raise ConfigurationError(f"{name} {value!r} is not {parameter.allowed}")
            if parameter is None and parsed != self._dropped[name]:
                raise ConfigurationError(f"{name} {value!r} is not {self._dropped[name]}, its only value")

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter that can be sampled, including conditional ones."""
        return {name: parameter.distribution() for name, parameter in self._reachable().items()}

    def conditional(self) -> set[str]:
        """Return the names of the parameters that only some trials have."""
        return {name for name, parameter in self._reachable().items() if not self._is_always_active(parameter)}

    def clip_to_space(self, params: Mapping[str, Any]) -> tuple[dict[str, Value], list[str]]:
        """Move parameters into the space.

        Args:
            params: values by name; names left out stay out, and Optuna samples them.

        Returns:
            the values in the space, without those whose condition fails, and one sentence for each adjustment.

        Raises:
            ConfigurationError: an unknown name or a value that is illegal in any space.
        """
        given = {name: parse_value(name, value) for name, value in params.items()}
        clipped: dict[str, Value] = {}
        adjustments: list[str] = []
        for name, parameter in parents_first(self.parameters).items():
            if name not in given:
                continue
            if failed := self._failed_condition(parameter, clipped):
                if given[name] != DEFAULTS[name]:  # otherwise leaving it out changes nothing
                    adjustments.append(f"{name} {given[name]} is ignored: it is searched only when {failed}.")
                continue
            clipped[name] = parameter.clip(given[name])
            if clipped[name] != given[name]:
                adjustments.append(f"{name} {given[name]} is outside the search space; using {clipped[name]} instead.")
        adjustments += [
            f"{name} is not searched; using {default} instead of {given[name]}."
            for name, default in self._dropped.items()
            if given.get(name, default) != default
        ]
        return clipped, adjustments

    def convert(self, params: Mapping[str, Any]) -> tuple[dict[str, Value], str]:
        """Convert the parameters of a trial from another space into this one.

        Args:
            params: hyperparameters by name; one that the trial did not have was at its default.

        Returns:
            the parameters of a trial in this space with the same hyperparameters, and an empty string. If there is no
            such trial: nothing, and the reason, a phrase without any number sampled from a continuous range.
        """
        used = {**DEFAULTS, **{name: parse_value(name, value) for name, value in params.items()}}
        converted: dict[str, Value] = {}
        for name, parameter in parents_first(self.parameters).items():
            if self._is_active(parameter, converted):
                if not parameter.allows(used[name]):
                    return {}, f"{_describe(name, used[name], params)} is not {parameter.allowed}"
                converted[name] = used[name]
            elif used[name] != DEFAULTS[name]:
                condition = self._failed_condition(parameter, converted) or "the parameter it depends on is searched"
                return {}, f"{name} is searched only when {condition}"
        for name, default in self._dropped.items():
            if used[name] != default:
                return {}, f"{_describe(name, used[name], params)} is not {default}, and {name} is not searched"
        return {name: converted[name] for name in HYPERPARAMETERS if name in converted}, ""

    def has(self, params: Mapping[str, Any]) -> bool:
        """Return whether a trial with these parameters is one of this space; see `convert`."""
        try:
            return not self.convert(params)[1]
        except ConfigurationError:
            return False

    def fingerprint(self) -> dict[str, Any]:
        """Return the space as JSON-able data; two that Optuna would treat alike differ at most in a step of 1."""
        forms: dict[str, Any] = {}
        for name, form in self:
            forms[name] = {"dropped": True, "value": DEFAULTS[name]} if form is None else form.model_dump(mode="json")
            if conditions := forms[name].pop("when", None):
                forms[name]["when"] = {parent: sorted(conditions[parent]) for parent in sorted(conditions)}
        return forms

    def _is_active(self, parameter: Parameter, params: Mapping[str, Value]) -> bool:
        """Return whether the condition holds: a dropped parent has its default, one that was not sampled fails it."""
        return all(self._dropped.get(parent, params.get(parent)) in values for parent, values in parameter.conditions)

    def _failed_condition(self, parameter: Parameter, given: Mapping[str, Value]) -> str:
        """Return the condition that the given values violate, if any; one on a value not given may still hold."""
        known = {**self._dropped, **given}
        for parent, values in parameter.conditions:
            if parent in known and known[parent] not in values:
                return f"{parent} is {' or '.join(map(str, values))}"
        return ""

    @property
    def _dropped(self) -> dict[str, Value]:
        return {name: DEFAULTS[name] for name, form in self if form is None}

    def _reachable(self) -> dict[str, Parameter]:
        reachable: dict[str, Parameter] = {}
        for name, parameter in parents_first(self.parameters).items():
            if all(set(values) & self._possible(parent, reachable) for parent, values in parameter.conditions):
                reachable[name] = parameter
        return {name: reachable[name] for name in HYPERPARAMETERS if name in reachable}

    def _is_always_active(self, parameter: Parameter) -> bool:
        return all(
            self._possible(parent, self.parameters) <= set(values)
            and (parent not in self.parameters or self._is_always_active(self.parameters[parent]))
            for parent, values in parameter.conditions
        )

    def _possible(self, name: str, reachable: Mapping[str, Parameter]) -> set[Value]:
        if name not in self.parameters:
            return {DEFAULTS[name]}
        return set(reachable[name].listed) if name in reachable else set()


class Baseline(create_model("BaselineFields", __base__=Section, **_BASELINE_FIELDS)):  # type: ignore[misc]
    """The hyperparameters of trial 0 and of the baseline model; values outside the search space move into it."""

    def hyperparameters(self) -> Hyperparameters:
        """Return the complete set."""
        return Hyperparameters(**self.model_dump())


BASELINE: Final = Baseline()


def parents_first(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Return the parameters with each after those its condition names; reject circular conditions."""
    ordered: dict[str, Parameter] = {}
    waiting = dict(parameters)
    while waiting:
        ready = [name for name, form in waiting.items() if not (form.when or {}).keys() & waiting.keys()]
        if not ready:  # each waits for another, so they form a circle
            path = [next(iter(waiting))]
            while path[-1] not in path[:-1]:
                path.append(next(parent for parent, _ in waiting[path[-1]].conditions if parent in waiting))
            circle = path[path.index(path[-1]) :]
            reject((circle[0], "when"), f"conditions are circular: {' → '.join(circle)}", circle)
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def _with_default_condition(name: str, form: object) -> object:
    default = HYPERPARAMETERS[name].space.get("when") if name in HYPERPARAMETERS else None
    if default is None:
        return form
    if isinstance(form, Parameter) and "when" not in form.model_fields_set:
        return form.model_copy(update={"when": default})
    return {"when": default, **form} if isinstance(form, Mapping) else form


def _describe(name: str, value: Value, params: Mapping[str, Any]) -> str:
    """Return a parameter, with its value unless nearly every trial has another."""
    if name not in params:
        return f"{name}={value}, which was not searched,"
    return name if isinstance(value, float) else f"{name}={value}"
