"""The search space: data from the settings, checked, and handed to Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

from pydantic import AfterValidator, model_validator

from csi_job.settings import Section
from csi_job.trial.hyperparameters import DEFAULTS, DOMAINS, PARAMETERS, Hyperparameters, Value, parse_value
from csi_job.trial.parameter import Parameter, in_domain, refuse

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

DEFAULT_SPACE: Final[dict[str, Parameter]] = {
    "model_arch": Parameter(choices=("ResNet50", "CheXNet", "Custom_1")),
    "optimizer": Parameter(choices=("adam", "adamw", "sgd")),
    "learning_rate": Parameter(low=1e-5, high=1e-1, log=True),
    "weight_decay": Parameter(low=1e-6, high=1e-2, log=True, when={"optimizer": ("adamw", "sgd")}),
    "momentum": Parameter(low=0.5, high=0.99, when={"optimizer": ("sgd",)}),
    "batch_size": Parameter(choices=(16, 32, 64, 128)),
    "patience": Parameter(low=5, high=20, step=1),
    "unknown_weight": Parameter(low=0.1, high=1.0),
}


class SearchSpace(Section):
    """The hyperparameters that are searched.

    What a user gives for a parameter replaces that parameter's default, but for its `when`, which stays unless given
    (`when: {}` takes it away); other parameters keep their defaults. `null` drops a parameter: it is not searched and
    takes the default of `Hyperparameters` (`{value: …}` fixes it at another).
    """

    model_arch: Annotated[Parameter | None, AfterValidator(in_domain("model_arch"))] = DEFAULT_SPACE["model_arch"]
    """Network architecture: ResNet50, CheXNet, Custom_1 or a torchvision backbone such as resnet18."""
    optimizer: Annotated[Parameter | None, AfterValidator(in_domain("optimizer"))] = DEFAULT_SPACE["optimizer"]
    """Optimizer: adam, adamw or sgd."""
    learning_rate: Annotated[Parameter | None, AfterValidator(in_domain("learning_rate"))] = DEFAULT_SPACE[
        "learning_rate"
    ]
    """Learning rate after the warm-up."""
    weight_decay: Annotated[Parameter | None, AfterValidator(in_domain("weight_decay"))] = DEFAULT_SPACE["weight_decay"]
    """Weight decay; 0 where it is not searched."""
    momentum: Annotated[Parameter | None, AfterValidator(in_domain("momentum"))] = DEFAULT_SPACE["momentum"]
    """Momentum of sgd; 0 where it is not searched."""
    batch_size: Annotated[Parameter | None, AfterValidator(in_domain("batch_size"))] = DEFAULT_SPACE["batch_size"]
    """Images per optimizer step."""
    patience: Annotated[Parameter | None, AfterValidator(in_domain("patience"))] = DEFAULT_SPACE["patience"]
    """Epochs without improvement in val_f1 after which training stops."""
    unknown_weight: Annotated[Parameter | None, AfterValidator(in_domain("unknown_weight"))] = DEFAULT_SPACE[
        "unknown_weight"
    ]
    """Weight of ungraded zones (class 4) in the loss."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names_and_keep_conditions(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if name not in PARAMETERS:
                refuse((str(name),), f"unknown parameter; allowed: {', '.join(PARAMETERS)}", given[name])
        return {name: _with_default_condition(name, form) for name, form in given.items()}

    @model_validator(mode="after")
    def _conditions_can_be_decided(self) -> SearchSpace:
        parameters = self.parameters
        for name, parameter in parameters.items():
            for parent in parameter.when or {}:
                if parent in parameters and parameters[parent].is_range:
                    message = "a condition needs a parameter with choices or a value, this one is a range"
                    refuse((name, "when", parent), message, parent)
        in_order(parameters)
        return self

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters that are searched or fixed, by name, in the order of the hyperparameters."""
        forms = {name: getattr(self, name) for name in PARAMETERS}
        return {name: form for name, form in forms.items() if form is not None}

    def suggest(self, trial: BaseTrial) -> Hyperparameters:
        """Let Optuna draw each parameter whose condition holds; the others keep their defaults."""
        drawn: dict[str, Value] = {}
        for name, parameter in in_order(self.parameters).items():
            if self._is_active(parameter, drawn):
                drawn[name] = parameter.suggest(trial, name)
        return Hyperparameters.from_params(drawn)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter that can be drawn, conditional ones too."""
        return {name: parameter.distribution() for name, parameter in self._reachable().items()}

    def conditional(self) -> set[str]:
        """Return the names of the parameters that are drawn in some trials only."""
        return {name for name, parameter in self._reachable().items() if not self._is_always_active(parameter)}

    def nearest(self, params: Mapping[str, Any]) -> tuple[dict[str, Value], list[str]]:
        """Move parameters into the space.

        Args:
            params: values by name; names left out stay out, and Optuna draws them.

        Returns:
            the values in the space, without those whose condition fails, and one sentence for each change.

        Raises:
            ConfigurationError: an unknown name or a value that is illegal in any space.

        """
        given = {name: parse_value(name, value) for name, value in params.items()}
        moved: dict[str, Value] = {}
        sentences: list[str] = []
        for name, parameter in in_order(self.parameters).items():
            if name not in given:
                continue
            if failed := self._failed_condition(parameter, moved):
                if given[name] != DEFAULTS[name]:  # else leaving it out changes nothing
                    sentences.append(f"{name} {given[name]} is left out, since it is drawn only when {failed}.")
                continue
            moved[name] = parameter.nearest(given[name])
            if moved[name] != given[name]:
                sentences.append(f"{name} {given[name]} is not in the space; {moved[name]} is tried instead.")
        sentences += [
            f"{name} is not searched; {default} is used, not {given[name]}."
            for name, default in self._dropped.items()
            if given.get(name, default) != default
        ]
        return moved, sentences

    def fitted(self, params: Mapping[str, Any]) -> tuple[dict[str, Value], str]:
        """Find a trial of any space in this one.

        Args:
            params: hyperparameters by name; one that the trial did not have was at its default.

        Returns:
            the parameters that a trial of this space with the same hyperparameters has, and an empty text; if there
            can be none, nothing, and why, in a phrase that names no number drawn from a range of real numbers.

        """
        used = {**DEFAULTS, **{name: parse_value(name, value) for name, value in params.items()}}
        fitted: dict[str, Value] = {}
        for name, parameter in in_order(self.parameters).items():
            if self._is_active(parameter, fitted):
                if not parameter.allows(used[name]):
                    return {}, f"{_told(name, used[name], params)} is not {parameter.allowed}"
                fitted[name] = used[name]
            elif used[name] != DEFAULTS[name]:
                condition = self._failed_condition(parameter, fitted) or "its own condition's parameter is drawn"
                return {}, f"{name} is drawn only when {condition}"
        for name, default in self._dropped.items():
            if used[name] != default:
                return {}, f"{_told(name, used[name], params)} is not {default}, and {name} is not searched"
        return {name: fitted[name] for name in PARAMETERS if name in fitted}, ""

    def fingerprint(self) -> dict[str, Any]:
        """Return the space as JSON-able data; two spaces that Optuna would treat alike give the same."""
        forms: dict[str, Any] = {}
        for name in PARAMETERS:
            form = getattr(self, name)
            forms[name] = {"dropped": True, "value": DEFAULTS[name]} if form is None else form.model_dump(mode="json")
            if conditions := forms[name].pop("when", None):
                forms[name]["when"] = {parent: sorted(conditions[parent]) for parent in sorted(conditions)}
        return forms

    def _is_active(self, parameter: Parameter, drawn: Mapping[str, Value]) -> bool:
        """Whether the condition holds: a dropped parent has its default, one that was not drawn fails it."""
        conditions = (parameter.when or {}).items()
        return all(self._dropped.get(parent, drawn.get(parent)) in values for parent, values in conditions)

    def _failed_condition(self, parameter: Parameter, given: Mapping[str, Value]) -> str:
        """Return the condition that the given values fail, empty if none: one on a value not given may yet hold."""
        known = {**self._dropped, **given}
        for parent, values in (parameter.when or {}).items():
            if parent in known and known[parent] not in values:
                return f"{parent} is {' or '.join(map(str, values))}"
        return ""

    @property
    def _dropped(self) -> dict[str, Value]:
        return {name: DEFAULTS[name] for name in PARAMETERS if getattr(self, name) is None}

    def _reachable(self) -> dict[str, Parameter]:
        reachable: dict[str, Parameter] = {}
        for name, parameter in in_order(self.parameters).items():
            conditions = (parameter.when or {}).items()
            if all(set(values) & self._possible(parent, reachable) for parent, values in conditions):
                reachable[name] = parameter
        return {name: reachable[name] for name in PARAMETERS if name in reachable}

    def _is_always_active(self, parameter: Parameter) -> bool:
        conditions = (parameter.when or {}).items()
        return all(
            self._possible(parent, self.parameters) <= set(values)
            and (parent not in self.parameters or self._is_always_active(self.parameters[parent]))
            for parent, values in conditions
        )

    def _possible(self, name: str, reachable: Mapping[str, Parameter]) -> set[Value]:
        if name not in self.parameters:
            return {DEFAULTS[name]}
        return set(reachable[name].listed) if name in reachable else set()


def _told(name: str, value: Value, params: Mapping[str, Any]) -> str:
    """Return a parameter with its value where many trials may have the same."""
    if name not in params:
        return f"{name}={value}, which was not searched,"
    return name if isinstance(value, float) else f"{name}={value}"


def in_order(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Return the parameters with each after those its condition names; refuse a circle of conditions."""
    ordered: dict[str, Parameter] = {}
    waiting = dict(parameters)
    while waiting:
        ready = [name for name, form in waiting.items() if not (form.when or {}).keys() & waiting.keys()]
        if not ready:
            _refuse_circle(waiting)
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def _refuse_circle(waiting: Mapping[str, Parameter]) -> NoReturn:
    """Name the circle: each of these waits for another, so following them comes round."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in waiting[path[-1]].when or {} if parent in waiting))
    circle = path[path.index(path[-1]) :]
    refuse((circle[0], "when"), f"conditions go in a circle: {' → '.join(circle)}", circle)


def _with_default_condition(name: str, form: object) -> object:
    default = DEFAULT_SPACE[name].when
    if default is None:
        return form
    if isinstance(form, Parameter) and "when" not in form.model_fields_set:
        return form.model_copy(update={"when": default})
    return {"when": default, **form} if isinstance(form, Mapping) else form


class Baseline(Section):
    """The hyperparameters of trial 0 and of the baseline model; moved into the space where they lie outside."""

    model_arch: Annotated[str, AfterValidator(DOMAINS["model_arch"].parse)] = "ResNet50"
    """Architecture."""
    optimizer: Annotated[str, AfterValidator(DOMAINS["optimizer"].parse)] = "adam"
    """Optimizer: adam, adamw or sgd."""
    learning_rate: Annotated[float, AfterValidator(DOMAINS["learning_rate"].parse)] = 1e-3
    """Learning rate after the warm-up."""
    batch_size: Annotated[int, AfterValidator(DOMAINS["batch_size"].parse)] = 32
    """Images per optimizer step."""
    patience: Annotated[int, AfterValidator(DOMAINS["patience"].parse)] = 10
    """Epochs without improvement in val_f1 after which training stops."""
    unknown_weight: Annotated[float, AfterValidator(DOMAINS["unknown_weight"].parse)] = 0.3
    """Weight of ungraded zones (class 4) in the loss."""
    weight_decay: Annotated[float, AfterValidator(DOMAINS["weight_decay"].parse)] = 0.0
    """Weight decay; 0: none."""
    momentum: Annotated[float, AfterValidator(DOMAINS["momentum"].parse)] = 0.0
    """Momentum of sgd; 0: none."""

    def hyperparameters(self) -> Hyperparameters:
        """Return them as a complete set."""
        return Hyperparameters(**self.model_dump())


BASELINE: Final = Baseline()
