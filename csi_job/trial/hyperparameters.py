"""The hyperparameters of a trial: their names, their legal values, and their defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.trial.architectures import check_architecture

OPTIMIZERS: Final = ("adam", "adamw", "sgd")
MAX_WHOLE = 1_000_000  # of a batch or a patience: far above use, so that no typing error asks for petabytes

Value = str | int | float


@dataclass(frozen=True)
class Domain:
    """The legal values of one hyperparameter, whatever the user's space."""

    kind: type[str | int | float]
    legal: str
    """A phrase that completes `must be …`."""
    words: tuple[str, ...] = ()
    low: float = 0.0
    high: float = math.inf
    low_is_legal: bool = True
    high_is_legal: bool = True

    def parse(self, value: object) -> Value:
        """Return the value in its own type (`'1e-3'`, as YAML reads it, is a number); raise `ValueError` if illegal."""
        try:
            parsed = self._parse(value)
        except (TypeError, ValueError, OverflowError):
            parsed = None
        if parsed is None:
            message = f"must be {self.legal}, got {value!r}"
            raise ValueError(message)
        return parsed

    def _parse(self, value: object) -> Value | None:
        if isinstance(value, bool):
            return None
        if self.kind is str:
            return value if isinstance(value, str) and value in self.words else None
        number = float(value)  # type: ignore[arg-type]
        is_end = (number == self.low and not self.low_is_legal) or (number == self.high and not self.high_is_legal)
        if is_end or not (self.low <= number <= self.high and math.isfinite(number)):
            return None
        if self.kind is float:
            return number
        return int(number) if number.is_integer() else None


class _Architectures(Domain):
    """As `Domain`, with the nearest name in the message."""

    def parse(self, value: object) -> Value:
        try:
            return check_architecture(str(value))
        except CsiJobError as error:
            raise ValueError(str(error)) from None


DOMAINS: Final[dict[str, Domain]] = {
    "model_arch": _Architectures(str, "the name of an architecture"),
    "optimizer": Domain(str, f"one of {', '.join(OPTIMIZERS)}", words=OPTIMIZERS),
    "learning_rate": Domain(float, "a number above 0 and at most 10", high=10, low_is_legal=False),
    "weight_decay": Domain(float, "a number from 0 to 1", high=1),
    "momentum": Domain(float, "a number from 0 to below 1", high=1, high_is_legal=False),
    "batch_size": Domain(int, f"a whole number from 1 to {MAX_WHOLE}", low=1, high=MAX_WHOLE),
    "patience": Domain(int, f"a whole number from 1 to {MAX_WHOLE}", low=1, high=MAX_WHOLE),
    "unknown_weight": Domain(float, "a number from 0 to 100", high=100),
}


@dataclass(frozen=True)
class Hyperparameters:
    """One complete set of hyperparameters; a parameter that a space leaves out keeps the default given here."""

    model_arch: str = "ResNet50"
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    batch_size: int = 32
    patience: int = 10
    """Epochs without a better `val_f1` after which training stops."""
    unknown_weight: float = 0.3
    """Weight of ungraded zones (class 4) in the loss."""
    weight_decay: float = 0.0
    momentum: float = 0.0

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Hyperparameters:
        """Return the set with these values; raise `ConfigurationError` for an unknown name or an illegal value."""
        return cls(**{name: parse_value(name, value) for name, value in params.items()})  # type: ignore[arg-type]

    def to_params(self) -> dict[str, Value]:
        """Return the values by name, without a weight decay or momentum of 0, which the optimizer does not use."""
        return {name: value for name, value in asdict(self).items() if value or name not in _OFF_AT_ZERO}


_OFF_AT_ZERO: Final = ("weight_decay", "momentum")
DEFAULTS: Final = asdict(Hyperparameters())
PARAMETERS: Final = tuple(DOMAINS)
assert set(PARAMETERS) == {field.name for field in fields(Hyperparameters)}


def parse_value(name: str, value: object) -> Value:
    """Return the value of a hyperparameter in its own type; raise `ConfigurationError` if name or value is illegal."""
    if name not in DOMAINS:
        message = "unknown hyperparameter"
        raise ConfigurationError(message, got=name, allowed=PARAMETERS)
    try:
        return DOMAINS[name].parse(value)
    except ValueError as error:
        message = f"{name}: {error}"
        raise ConfigurationError(message) from None
