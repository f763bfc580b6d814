import json
import subprocess
import sys

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csi_job.errors import ConfigurationError
from csi_job.settings import Section
from csi_job.trial.hyperparameters import DEFAULTS, HYPERPARAMETERS, Hyperparameters
from csi_job.trial.parameter import Parameter
from csi_job.trial.space import BASELINE, Baseline, SearchSpace


class Tree(Section):
    space: SearchSpace = SearchSpace()


def complaints(space: object) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate({"space": space})
    return [(".".join(map(str, error["loc"])), error["msg"]) for error in caught.value.errors()]


def sample(space: SearchSpace, num_trials: int = 60) -> list[tuple[Hyperparameters, optuna.trial.FrozenTrial]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(num_trials):
        trial = study.ask()
        drawn.append((space.suggest(trial), study.get_trials()[trial.number]))
    return drawn


def test_the_default_space_is_as_designed():
    assert SearchSpace().model_dump(mode="json") == {
        "model_arch": {"choices": ["ResNet50", "CheXNet", "Custom_1"]},
        "optimizer": {"choices": ["adam", "adamw", "sgd"]},
        "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True, "when": {"optimizer": ["adamw", "sgd"]}},
        "momentum": {"low": 0.5, "high": 0.99, "when": {"optimizer": ["sgd"]}},
        "batch_size": {"choices": [16, 32, 64, 128]},
        "patience": {"low": 5, "high": 20, "step": 1},
        "unknown_weight": {"low": 0.1, "high": 1.0},
    }


def test_a_users_parameter_replaces_only_that_one():
    space = SearchSpace.model_validate({"batch_size": {"choices": [8, 16]}})
    assert space.fingerprint() == SearchSpace().fingerprint() | {"batch_size": {"choices": [8, 16]}}


def test_conditional_parameters_are_sampled_only_if_their_condition_holds():
    space = SearchSpace()
    drawn = sample(space)
    assert {params.optimizer for params, _ in drawn} == {"adam", "adamw", "sgd"}
    for params, trial in drawn:
        assert ("momentum" in trial.params) == (params.optimizer == "sgd") == (params.momentum > 0)
        assert ("weight_decay" in trial.params) == (params.optimizer != "adam") == (params.weight_decay > 0)
        assert trial.distributions.items() <= space.distributions().items()


def test_a_replaced_parameter_keeps_its_condition_unless_another_is_given():
    kept = SearchSpace.model_validate({"momentum": {"value": 0.9}})
    freed = SearchSpace.model_validate({"momentum": {"value": 0.9, "when": {}}})
    in_python = SearchSpace(momentum=Parameter(value=0.9))
    assert kept.conditional() == in_python.conditional() == {"weight_decay", "momentum"}
    assert freed.conditional() == {"weight_decay"}
    assert SearchSpace.model_validate(freed.model_dump(mode="json")) == freed


def test_a_dropped_parameter_takes_its_default_and_is_not_in_the_trial():
    space = SearchSpace.model_validate({"unknown_weight": None, "optimizer": None})
    params, trial = sample(space, 1)[0]
    assert params.unknown_weight == DEFAULTS["unknown_weight"]
    assert params.optimizer == "adam"
    assert not {"unknown_weight", "optimizer", "momentum", "weight_decay"} & set(trial.params)
    assert "momentum" not in space.distributions()  # the dropped optimizer is adam, so the condition never holds


def test_a_fixed_parameter_is_in_the_trial():
    space = SearchSpace.model_validate({"batch_size": {"value": "32"}, "model_arch": {"value": "resnet18"}})
    params, trial = sample(space, 1)[0]
    assert (params.batch_size, params.model_arch) == (32, "resnet18")
    assert trial.params["batch_size"] == 32


def test_a_parameter_whose_condition_always_holds_is_not_conditional():
    assert SearchSpace.model_validate({"optimizer": {"value": "sgd"}}).conditional() == set()


def test_conditions_can_be_chained():
    space = SearchSpace.model_validate(
        {
            "optimizer": {"choices": ["adam", "sgd"], "when": {"model_arch": ["Custom_1"]}},
            "unknown_weight": {"choices": [0.5], "when": {"optimizer": ["sgd"]}},
        }
    )
    for params, trial in sample(space):
        assert ("optimizer" in trial.params) == (params.model_arch == "Custom_1")
        assert ("unknown_weight" in trial.params) == (trial.params.get("optimizer") == "sgd")


def test_another_process_has_the_same_distributions():
    code = """
import optuna
from csi_job.trial.space import SearchSpace
for name, distribution in SearchSpace().distributions().items():
    print(name, optuna.distributions.distribution_to_json(distribution))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = SearchSpace().distributions().items()
    assert answer.stdout.splitlines() == [f"{n} {optuna.distributions.distribution_to_json(d)}" for n, d in here]


def test_the_fingerprint_is_json_and_ignores_notation():
    first = {"learning_rate": {"low": "1e-4", "high": 0.01}, "patience": {"low": 5.0, "high": 9}}
    second = {"patience": {"high": "9", "low": 5}, "learning_rate": {"high": 1e-2, "low": 1e-4}}
    one, two = SearchSpace.model_validate(first), SearchSpace.model_validate(second)
    assert json.loads(json.dumps(one.fingerprint())) == two.fingerprint()
    assert one.fingerprint() != SearchSpace().fingerprint()


@pytest.mark.parametrize(
    ("space", "place", "message"),
    [
        ({"batchsize": {"value": 1}}, "space.batchsize", "Extra inputs"),
        ({"batch_size": {"choices": [16, 0]}}, "space.batch_size.choices", "whole number from 1"),
        ({"batch_size": {"choices": [16.5]}}, "space.batch_size.choices", "whole number"),
        ({"batch_size": {"choices": []}}, "space.batch_size.choices", "at least 1"),
        ({"batch_size": {"choices": [16, 16]}}, "space.batch_size.choices", "given twice"),
        ({"batch_size": {"choices": 32}}, "space.batch_size.choices", "must be a list such as [32]"),
        ({"batch_size": {"value": True}}, "space.batch_size.value", "got True"),
        ({"batch_size": 32}, "space.batch_size", "valid dictionary"),
        ({"patience": {"low": 5}}, "space.patience", "exactly one of"),
        ({"patience": {"low": 5, "high": 9, "value": 7}}, "space.patience", "exactly one of"),
        ({"patience": {}}, "space.patience", "exactly one of"),
        ({"patience": {"value": 7, "log": True}}, "space.patience", "belong to a range"),
        ({"patience": {"low": 5, "high": 9, "steps": 2}}, "space.patience.steps", "not permitted"),
        ({"patience": {"low": 5, "high": 20, "step": 2}}, "space.patience.high", "nearest below is 19"),
        ({"patience": {"low": 5, "high": 20, "step": 0.5}}, "space.patience.step", "whole number above 0"),
        ({"patience": {"low": 5, "high": 20, "step": 0}}, "space.patience.step", "above 0"),
        ({"unknown_weight": {"low": 0, "high": 1, "step": 1e-320}}, "space.unknown_weight.step", "is too small"),
        ({"patience": {"low": 5, "high": 20, "step": 1, "log": True}}, "space.patience.step", "exclude"),
        ({"learning_rate": {"low": 1e-2, "high": 1e-3}}, "space.learning_rate", "low 0.01 is above high 0.001"),
        ({"learning_rate": {"low": 0, "high": 1e-3}}, "space.learning_rate.low", "above 0"),
        ({"learning_rate": {"low": "fast", "high": 1}}, "space.learning_rate.low", "got 'fast'"),
        ({"learning_rate": {"value": float("nan")}}, "space.learning_rate.value", "got nan"),
        ({"weight_decay": {"low": 0, "high": 1e-3, "log": True}}, "space.weight_decay.low", "logarithmic"),
        ({"momentum": {"value": 1}}, "space.momentum.value", "below 1"),
        ({"unknown_weight": {"value": -0.1}}, "space.unknown_weight.value", "from 0"),
        ({"optimizer": {"choices": ["rmsprop"]}}, "space.optimizer.choices", "adam, adamw, sgd"),
        ({"optimizer": {"low": 1, "high": 2}}, "space.optimizer", "give choices"),
        ({"model_arch": {"choices": ["resnet81"]}}, "space.model_arch.choices", "did you mean resnet18?"),
        ({"model_arch": {"value": "vit_b_16"}}, "space.model_arch.value", "no such architecture"),
        ({"momentum": {"value": 0.9, "when": {"optim": ["sgd"]}}}, "space.momentum.when.optim", "unknown parameter"),
        ({"momentum": {"value": 0.9, "when": {"optimizer": ["sdg"]}}}, "space.momentum.when.optimizer", "got 'sdg'"),
        ({"momentum": {"value": 0.9, "when": {"patience": [5]}}}, "space.momentum.when.patience", "a range"),
        ({"optimizer": {"value": "sgd", "when": {"optimizer": ["sgd"]}}}, "space.optimizer.when", "circular"),
        (
            {
                "optimizer": {"choices": ["sgd"], "when": {"model_arch": ["ResNet50"]}},
                "model_arch": {"choices": ["ResNet50"], "when": {"optimizer": ["sgd"]}},
            },
            "space.model_arch.when",
            "model_arch → optimizer → model_arch",
        ),
    ],
)
def test_an_invalid_space_is_rejected_with_the_path(space, place, message):
    assert [(where, message in what) for where, what in complaints(space)] == [(place, True)]


def test_the_json_schema_describes_a_parameter():
    parameter = SearchSpace.model_json_schema()["$defs"]["Parameter"]
    assert parameter["additionalProperties"] is False
    forms = {form["type"]: form.get("minItems") for form in parameter["properties"]["choices"]["anyOf"]}
    assert forms == {"array": 1, "null": None}
    assert all(parameter["properties"][name]["description"] for name in Parameter.model_fields)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*HYPERPARAMETERS, *Parameter.model_fields]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(junk)
def test_arbitrary_data_is_either_a_space_or_rejected(space):
    try:
        tree = Tree.model_validate({"space": space})
    except ValidationError:
        return
    for params, _ in sample(tree.space, 2):
        assert Hyperparameters.from_params(params.to_params()) == params


numbers = st.floats(0.0001, 0.99) | st.integers(1, 500)


@settings(max_examples=60, deadline=None)
@given(numbers, numbers, st.integers(1, 500), st.sampled_from(["adam", "adamw", "sgd"]))
def test_optuna_samples_clipped_parameters_unchanged(rate, momentum, batch, optimizer):
    params = {"learning_rate": min(rate, 10), "momentum": momentum % 1, "batch_size": batch, "optimizer": optimizer}
    space = SearchSpace.model_validate({"unknown_weight": {"low": 0.1, "high": 0.9, "step": 0.2}})
    clipped, _ = space.clip_to_space({**params, "unknown_weight": momentum % 1})
    study = optuna.create_study()
    study.enqueue_trial(clipped)
    space.suggest(trial := study.ask())
    assert trial.params.items() >= clipped.items()  # Optuna took each as given, since it was inside


def test_the_baseline_and_a_partial_set_lie_in_the_default_space():
    params = BASELINE.hyperparameters().to_params()
    assert SearchSpace().clip_to_space(params) == (params, [])
    assert BASELINE.hyperparameters() == Hyperparameters()
    assert SearchSpace().clip_to_space({"momentum": 0.8}) == ({"momentum": 0.8}, [])  # open conditions may still hold


def test_each_parameter_outside_the_space_is_clipped_with_a_message():
    space = SearchSpace.model_validate(
        {
            "model_arch": {"choices": ["resnet18", "Custom_1"]},
            "batch_size": {"choices": [8, 16, 128]},
            "patience": {"low": 3, "high": 6},
            "unknown_weight": None,
        }
    )
    clipped, adjustments = space.clip_to_space(
        {**BASELINE.hyperparameters().to_params(), "unknown_weight": 0.7, "momentum": 0.9}
    )
    own = {"model_arch": "resnet18", "batch_size": 16, "patience": 6}
    assert clipped == {"optimizer": "adam", "learning_rate": 1e-3, **own}
    assert sorted(adjustments) == [
        "batch_size 32 is outside the search space; using 16 instead.",
        "model_arch ResNet50 is outside the search space; using resnet18 instead.",
        "momentum 0.9 is ignored: it is searched only when optimizer is sgd.",
        "patience 10 is outside the search space; using 6 instead.",
        "unknown_weight is not searched; using 0.3 instead of 0.7.",
    ]


@pytest.mark.parametrize("params", [{"lr": 1}, {"batch_size": "many"}, {"batch_size": None}, {"momentum": 1.0}])
def test_illegal_parameters_are_rejected_in_one_line(params):
    with pytest.raises(ConfigurationError, match=next(iter(params))):
        SearchSpace().clip_to_space(params)
    with pytest.raises(ConfigurationError):
        Hyperparameters.from_params(params)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_baseline_value_is_checked_like_one_of_the_space(name):
    with pytest.raises(ValidationError, match=name):
        Baseline.model_validate({name: -1})
    assert HYPERPARAMETERS[name].parse(DEFAULTS[name]) == DEFAULTS[name]


DRAWN = BASELINE.hyperparameters().to_params()


@pytest.mark.parametrize(
    ("space", "changes", "expected"),
    [
        ({}, {}, ""),
        ({"batch_size": {"choices": [8, 16]}}, {}, "batch_size=32 is not one of 8, 16"),
        ({"batch_size": {"value": 16}}, {}, "batch_size=32 is not 16"),
        ({"batch_size": {"value": 32}}, {}, ""),
        ({"batch_size": {"low": 8, "high": 64, "step": 8}}, {}, ""),
        ({"patience": {"low": 5, "high": 20, "step": 3}}, {}, "patience=10 is not between 5 and 20 in steps of 3"),
        ({"learning_rate": {"low": 1e-5, "high": 1e-4}}, {}, "learning_rate is not between 1e-05 and 0.0001"),
        ({"learning_rate": {"low": 1e-3, "high": 1e-1}}, {}, ""),
        ({"optimizer": {"choices": ["sgd", "adamw"]}}, {}, "optimizer=adam is not one of sgd, adamw"),
        ({}, {"weight_decay": 1e-3}, "weight_decay is searched only when optimizer is adamw or sgd"),
        ({}, {"optimizer": "adamw", "weight_decay": 1e-3}, ""),
        ({}, {"optimizer": "adamw"}, "weight_decay=0.0, which was not searched, is not between 1e-06 and 0.01"),
        ({"weight_decay": {"low": 0, "high": 1e-2, "when": {}}}, {}, ""),
        ({"unknown_weight": None}, {}, ""),
        ({"unknown_weight": None}, {"unknown_weight": 0.5}, "unknown_weight is not 0.3, and unknown_weight is not"),
        ({"patience": None}, {"patience": 11}, "patience=11 is not 10, and patience is not searched"),
        ({"optimizer": None}, {"optimizer": "sgd"}, "optimizer=sgd is not adam, and optimizer is not searched"),
    ],
)
def test_a_trial_of_another_space_is_converted_or_the_reason_given(space, changes, expected):
    new = SearchSpace.model_validate(space)
    params, reason = new.convert({**DRAWN, **changes})
    assert reason.startswith(expected)
    assert bool(reason) == bool(expected)
    if not expected:
        assert Hyperparameters.from_params(params) == Hyperparameters.from_params({**DRAWN, **changes})
        trial = optuna.trial.FixedTrial(params)
        assert new.suggest(trial) == Hyperparameters.from_params(params)
        assert trial.params == params


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_converting_a_trial_of_the_same_space_changes_nothing(seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    trial = study.ask()
    space = SearchSpace.model_validate({"unknown_weight": {"low": 0.1, "high": 1.0, "step": 0.3}})
    space.suggest(trial)
    assert space.convert(trial.params) == (trial.params, "")
    params, reason = space.convert({name: value for name, value in trial.params.items() if name != "patience"})
    assert (params["patience"], reason) == (10, "")  # a parameter missing from a trial had its default
