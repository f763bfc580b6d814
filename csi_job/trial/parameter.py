"""One parameter of the search space: its form in the settings, its checks, and its Optuna distribution.

Optuna is imported only where a distribution is made, so that reading settings stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from csi_job.settings import Section
from csi_job.trial.hyperparameters import HYPERPARAMETERS, Hyperparameter, Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

ROUNDING: Final = 1e-9  # relative rounding error allowed when a range is divided by its step


def _a_scalar(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a number or text, got {value}")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


def _a_list(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list such as [{value}], got {value!r}")  # noqa: TRY004 - as above
    return value


Scalar = Annotated[int | float | str, BeforeValidator(_a_scalar)]
Scalars = Annotated[tuple[Scalar, ...], Field(min_length=1), BeforeValidator(_a_list)]


def _given(*names: str, **extra: Any) -> dict[str, Any]:
    """Return a JSON schema that requires these fields, and not null; `extra` adds to the schema of some."""
    return {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names} | extra}


_ONE_FORM: Final[dict[str, Any]] = {
    "oneOf": [_given("choices"), _given("low", "high"), _given("value")],
    "dependencies": {"low": ["high"], "high": ["low"], "step": ["low"]},
    "if": _given("log", log={"const": True}),
    "then": {**_given("low", low={"exclusiveMinimum": 0}), "not": _given("step")},
}


class Parameter(Section):
    """The values of one hyperparameter: `choices`, or `low` and `high` (with `log` or `step`), or one `value`."""

    model_config = ConfigDict(json_schema_extra=_ONE_FORM, allow_inf_nan=True)  # `check_of` refuses them by their place

    choices: Scalars | None = None
    """Values to choose from."""
    low: Scalar | None = None
    """Smallest value of a range, inclusive."""
    high: Scalar | None = None
    """Largest value of a range, inclusive."""
    log: bool = False
    """Sample the range on a logarithmic scale."""
    step: Scalar | None = None
    """Distance between the values of a range."""
    value: Scalar | None = None
    """The only value: the parameter is fixed."""
    when: dict[str, Scalars] | None = None
    """Sample this parameter only if other parameters have one of these values, e.g. `{optimizer: [adamw, sgd]}`."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Parameter:
        is_range = self.low is not None or self.high is not None
        half = is_range and (self.low is None or self.high is None)
        if half or sum((self.choices is not None, is_range, self.value is not None)) != 1:
            raise ValueError("needs exactly one of: choices; low and high; value")
        if not is_range and (self.log or self.step is not None):
            raise ValueError("log and step belong to a range of low and high")
        return self

    @model_serializer
    def _serialize_set_fields(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None and value is not False}

    @property
    def is_range(self) -> bool:
        """Whether the values are a range rather than a list."""
        return self.low is not None

    @property
    def listed(self) -> tuple[Value, ...]:
        """The values, unless they are a range."""
        return self.choices or ((self.value,) if self.value is not None else ())

    @property
    def conditions(self) -> list[tuple[str, tuple[Value, ...]]]:
        """The parameters on which this one depends, each with the values for which this one is sampled."""
        return list((self.when or {}).items())

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
        """Let Optuna sample a value from `distribution`."""
        from optuna.distributions import FloatDistribution, IntDistribution

        match self.distribution():
            case IntDistribution(low=low, high=high, log=log, step=step):
                return trial.suggest_int(name, low, high, log=log, step=step)
            case FloatDistribution() as floats:
                return trial.suggest_float(name, floats.low, floats.high, log=floats.log, step=floats.step)
            case _:
                return trial.suggest_categorical(name, self.listed)  # type: ignore[return-value] # a listed Value

    @property
    def allowed(self) -> str:
        """The values, as a phrase that completes `is not …`."""
        if self.value is not None:
            return str(self.value)
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        return f"between {self.low} and {self.high}{'' if self.step in (None, 1) else f' in steps of {self.step}'}"

    def allows(self, value: Value) -> bool:
        """Return whether exactly this value can be sampled."""
        if not self.is_range:
            return value in self.listed
        from csi_job.storage.optuna_private import contains

        return contains(self.distribution(), float(value))

    def clip(self, value: Value) -> Value:
        """Return the allowed value nearest to this one; for text that is not allowed, the first listed one."""
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


def check_of(name: str) -> Callable[[Parameter | None], Parameter | None]:
    """Return a validator that converts a parameter's values to the hyperparameter's type and rejects illegal ones."""

    def check(parameter: Parameter | None) -> Parameter | None:
        if parameter is None:
            return None
        entry = HYPERPARAMETERS[name]
        checked = _checked_range(parameter, entry) if parameter.is_range else _checked_list(parameter, entry)
        when = parameter.when
        if when is not None:
            when = {parent: _checked_condition(parent, values) for parent, values in when.items()}
        return parameter.model_copy(update={**checked, "when": when})

    return check


def reject(place: tuple[str, ...], message: str, value: object) -> NoReturn:
    """Raise an error that pydantic reports at this dotted path below the value being validated."""
    error = InitErrorDetails(
        type=PydanticCustomError("space", "{message}", {"message": message}), loc=place, input=value
    )
    raise ValidationError.from_exception_data("space", [error])


def _parsed(entry: Hyperparameter, place: tuple[str, ...], value: object) -> Value:
    try:
        return entry.parse(value)
    except ValueError as error:
        reject(place, str(error), value)


def _checked_condition(parent: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    if parent not in HYPERPARAMETERS:
        reject(("when", parent), f"unknown parameter; allowed: {', '.join(HYPERPARAMETERS)}", values)
    return tuple(_parsed(HYPERPARAMETERS[parent], ("when", parent), value) for value in values)


def _checked_list(parameter: Parameter, entry: Hyperparameter) -> dict[str, object]:
    field = "value" if parameter.choices is None else "choices"
    listed = tuple(_parsed(entry, (field,), value) for value in parameter.listed)
    if len(set(listed)) < len(listed):
        reject((field,), f"a value is given twice: {', '.join(map(str, listed))}", parameter.choices)
    return {field: listed[0] if parameter.choices is None else listed}


def _checked_range(parameter: Parameter, entry: Hyperparameter) -> dict[str, object]:
    if entry.kind is str:
        reject((), "text has no low and high; give choices or a value", parameter.low)
    low = float(_parsed(entry, ("low",), parameter.low))
    high = float(_parsed(entry, ("high",), parameter.high))
    if low > high:
        reject((), f"low {low:g} is above high {high:g}", parameter.low)
    if parameter.log and low <= 0:
        reject(("low",), f"must be above 0 on a logarithmic scale, got {low:g}", parameter.low)
    checked: dict[str, object] = {"low": entry.kind(low), "high": entry.kind(high)}
    return checked if parameter.step is None else checked | {"step": _checked_step(parameter, entry, low, high)}


def _checked_step(parameter: Parameter, entry: Hyperparameter, low: float, high: float) -> Value:
    if parameter.log:
        reject(("step",), "step and log exclude each other", parameter.step)
    try:
        step = float(parameter.step)  # type: ignore[arg-type] # not None here
    except (ValueError, OverflowError):
        step = math.nan
    if not (0 < step < math.inf) or (entry.kind is int and not step.is_integer()):
        whole = "whole " if entry.kind is int else ""
        reject(("step",), f"must be a {whole}number above 0, got {parameter.step!r}", parameter.step)
    num_steps = (high - low) / step
    if math.isinf(num_steps):
        reject(("step",), f"{step:g} is too small for a range from {low:g} to {high:g}", parameter.step)
    if abs(num_steps - round(num_steps)) > ROUNDING * max(1, num_steps):
        top = low + math.floor(num_steps) * step
        reject(("high",), f"{high:g} is not low plus a multiple of {step:g}; the nearest below is {top:g}", high)
    return entry.kind(step)
