"""The hyperparameters of a trial, one entry each.

To add one, add a field to `Hyperparameters` and use it in the trainer: the settings (`space` and `baseline`), the
search space, the checks, the stored parameters and the reports' labels all come from the entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self, TypeVar

from csi_job.errors import ConfigurationError
from csi_job.trial.architectures import check_architecture

MAX_INT: Final = 1_000_000  # far above any use, so that a typo cannot ask for petabytes

Value = str | int | float
T = TypeVar("T", str, int, float)


@dataclass(frozen=True)
class Hyperparameter:
    """What is known about one hyperparameter; its type is that of its default."""

    default: Value
    """Value in the baseline, and wherever the parameter is not searched."""
    label: str
    """Name in tables and figures."""
    meaning: str
    legal: str
    """Completes the phrase `must be …`."""
    is_legal: Callable[[Any], object]
    """Whether a value of the right type is legal in any search space; may raise `ConfigurationError` to say more."""
    space: Mapping[str, Any]
    """Default search space, as in the settings."""

    @property
    def kind(self) -> type[Value]:
        """The type of the values."""
        return type(self.default)

    def parse(self, value: object) -> Value:
        """Return a value in its own type (YAML reads `1e-3` as text); raise `ValueError` if it is illegal."""
        try:
            parsed = self._convert(value)
            if self.is_legal(parsed):
                return parsed
        except (TypeError, ValueError, OverflowError):
            pass
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        raise ValueError(f"must be {self.legal}, got {value!r}")

    def _convert(self, value: Any) -> Value:
        if isinstance(value, bool) or (self.kind is str and not isinstance(value, str)):
            raise TypeError
        if self.kind is str:
            return str(value)
        number = float(value)
        if self.kind is float:
            return number
        if not number.is_integer():
            raise ValueError
        return int(number)


def _entry(default: T, *, is_legal: Callable[[T], object], **about: Any) -> T:
    return field(default=default, metadata={"entry": Hyperparameter(default, is_legal=is_legal, **about)})


@dataclass(frozen=True)
class Hyperparameters:
    """One complete set of hyperparameters, and the table that declares them, in the order in which they are sampled."""

    model_arch: str = _entry(
        "ResNet50",
        label="Architecture",
        meaning="Network architecture: ResNet50, CheXNet, Custom_1 or a torchvision backbone such as resnet18.",
        legal="the name of an architecture",
        is_legal=check_architecture,
        space={"choices": ("ResNet50", "CheXNet", "Custom_1")},
    )
    optimizer: str = _entry(
        "adam",
        label="Optimizer",
        meaning="Optimizer: adam, adamw or sgd.",
        legal="one of adam, adamw, sgd",
        is_legal=lambda name: name in {"adam", "adamw", "sgd"},
        space={"choices": ("adam", "adamw", "sgd")},
    )
    learning_rate: float = _entry(
        1e-3,
        label="Learning rate",
        meaning="Learning rate after the warm-up.",
        legal="a number above 0 and at most 10",
        is_legal=lambda rate: 0 < rate <= 10,  # noqa: PLR2004
        space={"low": 1e-5, "high": 1e-1, "log": True},
    )
    weight_decay: float = _entry(
        0.0,
        label="Weight decay",
        meaning="Weight decay; 0 turns it off.",
        legal="a number from 0 to 1",
        is_legal=lambda decay: 0 <= decay <= 1,
        space={"low": 1e-6, "high": 1e-2, "log": True, "when": {"optimizer": ("adamw", "sgd")}},
    )
    momentum: float = _entry(
        0.0,
        label="Momentum",
        meaning="Momentum of sgd; 0 turns it off.",
        legal="a number from 0 to below 1",
        is_legal=lambda momentum: 0 <= momentum < 1,
        space={"low": 0.5, "high": 0.99, "when": {"optimizer": ("sgd",)}},
    )
    batch_size: int = _entry(
        32,
        label="Batch size",
        meaning="Images per optimizer step.",
        legal=f"a whole number from 1 to {MAX_INT}",
        is_legal=lambda size: 1 <= size <= MAX_INT,
        space={"choices": (16, 32, 64, 128)},
    )
    patience: int = _entry(
        10,
        label="Patience (epochs)",
        meaning="Epochs without improvement in val_f1 after which training stops.",
        legal=f"a whole number from 1 to {MAX_INT}",
        is_legal=lambda patience: 1 <= patience <= MAX_INT,
        space={"low": 5, "high": 20, "step": 1},
    )
    unknown_weight: float = _entry(
        0.3,
        label="Unknown weight",
        meaning="Weight of ungraded zones (class 4) in the loss.",
        legal="a number from 0 to 100",
        is_legal=lambda weight: 0 <= weight <= 100,  # noqa: PLR2004
        space={"low": 0.1, "high": 1.0},
    )

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Return the set with these values, defaults elsewhere; raise `ConfigurationError` as `parse_value` does."""
        return cls(**{name: parse_value(name, value) for name, value in params.items()})  # type: ignore[arg-type]

    def to_params(self) -> dict[str, Value]:
        """Return the values by name, without those that are off (0) and off by default."""
        return {name: value for name, value in asdict(self).items() if value or DEFAULTS[name]}


HYPERPARAMETERS: Final[dict[str, Hyperparameter]] = {
    field.name: field.metadata["entry"] for field in fields(Hyperparameters)
}
DEFAULTS: Final[dict[str, Value]] = {name: entry.default for name, entry in HYPERPARAMETERS.items()}


def parse_value(name: str, value: object) -> Value:
    """Return a value in its hyperparameter's type; raise `ConfigurationError` if name or value is illegal."""
    if name not in HYPERPARAMETERS:
        raise ConfigurationError("unknown hyperparameter", got=name, allowed=tuple(HYPERPARAMETERS))
    try:
        return HYPERPARAMETERS[name].parse(value)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None
