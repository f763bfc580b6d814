"""One parameter of the search space: its form in the settings, its checks, and its Optuna distribution.

Optuna is imported only where a distribution is made, so that reading settings stays fast.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

from pydantic import BeforeValidator, Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from csi_job.settings import Section
from csi_job.trial.hyperparameters import DOMAINS, Domain, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

ROUNDING: Final = 1e-9  # relative error of a range divided by its step that is not a user's mistake


def _not_a_flag(value: object) -> object:
    if isinstance(value, bool):
        message = f"must be a number or a word, got {value}"
        raise ValueError(message)  # noqa: TRY004 - pydantic makes a ValueError its own error
    return value


def _a_list(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        message = f"must be a list such as [{value}], got {value!r}"
        raise ValueError(message)  # noqa: TRY004 - as above
    return value


Scalar = Annotated[int | float | str, BeforeValidator(_not_a_flag)]
Scalars = Annotated[tuple[Scalar, ...], Field(min_length=1), BeforeValidator(_a_list)]


class Parameter(Section):
    """One hyperparameter's values: `choices`, or `low` and `high` (with `log` or `step`), or one `value`."""

    choices: Scalars | None = None
    """The values to choose from."""
    low: Scalar | None = None
    """Smallest value of a range, included."""
    high: Scalar | None = None
    """Largest value of a range, included."""
    log: bool = False
    """Draw from the range on a logarithmic scale."""
    step: Scalar | None = None
    """Distance between the values of a range."""
    value: Scalar | None = None
    """The one value: the parameter is fixed."""
    when: dict[str, Scalars] | None = None
    """Draw this parameter only where these others have one of these values, e.g. `{optimizer: [adamw, sgd]}`."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Parameter:
        is_range = self.low is not None or self.high is not None
        half = is_range and (self.low is None or self.high is None)
        if half or sum((self.choices is not None, is_range, self.value is not None)) != 1:
            message = "needs exactly one of: choices; low and high; value"
            raise ValueError(message)
        if not is_range and (self.log or self.step is not None):
            message = "log and step belong to a range of low and high"
            raise ValueError(message)
        return self

    @model_serializer
    def _what_is_said(self) -> dict[str, Any]:
        said = {name: getattr(self, name) for name in ("choices", "low", "high", "log", "step", "value", "when")}
        return {name: value for name, value in said.items() if value is not None and value is not False}

    @property
    def is_range(self) -> bool:
        """Whether the values are a range, not a list."""
        return self.low is not None

    @property
    def listed(self) -> tuple[Value, ...]:
        """The values of a parameter that is not a range."""
        return self.choices or ((self.value,) if self.value is not None else ())

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution, the same in every process."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        low, high = (self.low, self.high) if self.is_range else (self.value, self.value)
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=self.log, step=int(self.step or 1))
        if isinstance(low, float) and isinstance(high, float):
            return FloatDistribution(low, high, log=self.log, step=None if self.step is None else float(self.step))
        return CategoricalDistribution(self.listed)

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Let Optuna draw a value from `distribution`."""
        from optuna.distributions import FloatDistribution, IntDistribution

        match self.distribution():
            case IntDistribution(low=low, high=high, log=log, step=step):
                return trial.suggest_int(name, low, high, log=log, step=step)
            case FloatDistribution() as drawn:
                return trial.suggest_float(name, drawn.low, drawn.high, log=drawn.log, step=drawn.step)
            case _:
                return trial.suggest_categorical(name, self.listed)  # type: ignore[return-value] # a listed Value

    @property
    def allowed(self) -> str:
        """The values in a phrase that completes `is not …`."""
        if self.value is not None:
            return str(self.value)
        if self.choices is not None:
            return f"among {', '.join(map(str, self.choices))}"
        return f"from {self.low} to {self.high}{'' if self.step in (None, 1) else f' in steps of {self.step}'}"

    def allows(self, value: Value) -> bool:
        """Return whether this very value can be drawn."""
        if not self.is_range:
            return value in self.listed
        from csi_job.storage.optuna_private import contains

        return contains(self.distribution(), float(value))

    def nearest(self, value: Value) -> Value:
        """Return the allowed value nearest to this one; for a word that is not allowed, the first listed one."""
        if value in self.listed:
            return value
        if isinstance(value, str):
            return self.listed[0]
        if not self.is_range:
            return min(self.listed, key=lambda listed: abs(float(listed) - value))
        low, high = self.low, self.high
        assert isinstance(low, (int, float))
        assert isinstance(high, (int, float))
        inside = min(max(value, low), high)
        if self.step is None:
            return inside
        num_steps = round((inside - low) / float(self.step))
        return type(low)(min(low + num_steps * float(self.step), high))


def in_domain(name: str) -> Callable[[Parameter | None], Parameter | None]:
    """Return a validator that gives a parameter's values the hyperparameter's type and refuses illegal ones."""
    domain = DOMAINS[name]

    def check(parameter: Parameter | None) -> Parameter | None:
        if parameter is None:
            return None
        checked = _checked_range(parameter, domain) if parameter.is_range else _checked_list(parameter, domain)
        when = parameter.when
        if when is not None:
            when = {parent: _checked_condition(parent, values) for parent, values in when.items()}
        return parameter.model_copy(update={**checked, "when": when})

    return check


def refuse(place: tuple[str, ...], message: str, value: object) -> NoReturn:
    """Raise an error that pydantic reports at this dotted place below what is validated."""
    error = InitErrorDetails(
        type=PydanticCustomError("space", "{message}", {"message": message}), loc=place, input=value
    )
    raise ValidationError.from_exception_data("space", [error])


def _parsed(domain: Domain, place: tuple[str, ...], value: object) -> Value:
    try:
        return domain.parse(value)
    except ValueError as error:
        refuse(place, str(error), value)


def _checked_condition(parent: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    if parent not in DOMAINS:
        refuse(("when", parent), f"unknown parameter; allowed: {', '.join(DOMAINS)}", values)
    return tuple(_parsed(DOMAINS[parent], ("when", parent), value) for value in values)


def _checked_list(parameter: Parameter, domain: Domain) -> dict[str, object]:
    """Return choices or value in the domain's type; refuse a value that is named twice."""
    field = "value" if parameter.choices is None else "choices"
    listed = tuple(_parsed(domain, (field,), value) for value in parameter.listed)
    if len(set(listed)) < len(listed):
        refuse((field,), f"a value is named twice: {', '.join(map(str, listed))}", parameter.choices)
    return {field: listed[0] if parameter.choices is None else listed}


def _checked_range(parameter: Parameter, domain: Domain) -> dict[str, object]:
    """Return low, high and step in the domain's type; refuse a range that is empty or ends in a part of a step."""
    if domain.kind is str:
        refuse((), "a word has no low and high; give choices or a value", parameter.low)
    low = float(_parsed(domain, ("low",), parameter.low))
    high = float(_parsed(domain, ("high",), parameter.high))
    if low > high:
        refuse((), f"low {low:g} is above high {high:g}", parameter.low)
    if parameter.log and low <= 0:
        refuse(("low",), f"must be above 0 on a logarithmic scale, got {low:g}", parameter.low)
    checked: dict[str, object] = {"low": domain.kind(low), "high": domain.kind(high)}
    return checked if parameter.step is None else checked | {"step": _checked_step(parameter, domain, low, high)}


def _checked_step(parameter: Parameter, domain: Domain, low: float, high: float) -> Value:
    if parameter.log:
        refuse(("step",), "step and log exclude each other", parameter.step)
    try:
        step = float(parameter.step)  # type: ignore[arg-type] # not None here
    except (ValueError, OverflowError):
        step = math.nan
    if not (0 < step < math.inf) or (domain.kind is int and not step.is_integer()):
        whole = "whole " if domain.kind is int else ""
        refuse(("step",), f"must be a {whole}number above 0, got {parameter.step!r}", parameter.step)
    num_steps = (high - low) / step
    if abs(num_steps - round(num_steps)) > ROUNDING * max(1, num_steps):
        top = low + math.floor(num_steps) * step
        refuse(("high",), f"{high:g} is not low plus whole steps of {step:g}; the nearest below is {top:g}", high)
    return domain.kind(step)
