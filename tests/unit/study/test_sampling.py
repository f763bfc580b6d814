from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import outcome_of
from csi_job.storage.optuna_private import reseed
from csi_job.study.sampling import derived_seed, make_sampler
from csi_job.study.settings import StudySettings
from csi_job.trial.parameter import Parameter
from csi_job.trial.space import SearchSpace
from tests.support.studies import SPACE, define, toy_space, work_on


def test_every_trial_has_a_seed_of_its_own():
    seeds = {derived_seed(study_seed, number) for study_seed in range(20) for number in range(500)}
    assert len(seeds) == 20 * 500
    assert derived_seed(42, 7) == derived_seed(42, 7)


@pytest.mark.parametrize("name", ["tpe", "tpe_per_cost", "random", "cmaes"])
def test_no_two_trials_draw_the_same_point_and_a_second_study_draws_the_same(name, storage, tmp_path):
    given = {"num_trials": 14, "max_epochs": 1, "sampler": name, "pruner": "none", "num_startup_trials": 4}
    drawn = []
    space = SPACE.model_copy(update={"model_arch": Parameter(choices=("ResNet50", "Custom_1"))})
    for study_name in ("one", "two"):
        study = define(storage, space=space, name=study_name, **given)
        work_on(study, tmp_path, suggest=space.suggest, name=study_name, **given)
        drawn.append([trial.params for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert len({params["unknown_weight"] for params in drawn[0]}) == 14


def test_the_draws_are_those_of_optunas_own_sampler(storage, tmp_path):
    given = {"num_trials": 12, "max_epochs": 2, "num_startup_trials": 4}
    study = define(storage, **given)
    work_on(study, tmp_path, **given)
    for number in (8, 11):
        sampler = make_sampler(StudySettings(num_startup_trials=4), SPACE)
        reseed(sampler, derived_seed(42, number))
        twin = optuna.create_study(sampler=sampler, direction="maximize")
        twin.add_trials([trial for trial in study.trials if trial.number < number])
        trial = twin.ask()
        SPACE.suggest(trial)
        assert trial.params == study.trials[number].params


def test_cmaes_learns_through_trials_with_and_without_a_conditional_number(storage, tmp_path, logged):
    given = {"num_trials": 30, "max_epochs": 1, "sampler": "cmaes", "pruner": "none", "num_startup_trials": 1}
    study = define(storage, **given)
    work_on(study, tmp_path, **given)
    modelled = [trial for trial in study.trials if any(key.startswith("cma:") for key in trial.system_attrs)]
    assert len(modelled) >= 25
    assert logged.text.count("CMA-ES models unknown_weight and samples optimizer, patience at random") == 1
    assert {trial.params["optimizer"] for trial in modelled} == {"adam", "sgd"}


@pytest.mark.parametrize(
    ("sampler", "pruner", "name"),
    [
        *(("tpe", "none", "constraints"), ("tpe", "none", "constraints:trainable"), ("tpe", "none", "constraints:x")),
        *(("cmaes", "none", f"cma:{name}") for name in ("optimizer:0", "optimizer:1", "generation")),
        ("random", "successive_halving", "completed_rung_0"),
    ],
)
@pytest.mark.parametrize("value", [None, "../x", {"a": 1}, [1, "x"], 10**400, True], ids=lambda value: str(value)[:9])
def test_what_another_program_keeps_for_optuna_fails_no_trial(storage, tmp_path, sampler, pruner, name, value):
    given = {"num_trials": 6, "sampler": sampler, "pruner": pruner, "num_startup_trials": 1}
    study = define(storage, **given)
    foreign = optuna.load_study(study_name="toy", storage=f"sqlite:///{storage.address.path}")
    point = {"params": {"unknown_weight": 0.5}, "distributions": {"unknown_weight": FloatDistribution(0, 1)}}
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        foreign.add_trial(create_trial(state=state, value=0.3, **point, system_attrs={name: value}))
    work_on(study, tmp_path, **given)
    assert {outcome_of(trial) for trial in study.trials} <= {"complete", "pruned"}
    assert study.best_trial.value > 0.3


def test_cmaes_needs_a_number():
    with pytest.raises(ConfigurationError, match="needs a number"):
        make_sampler(StudySettings(sampler="cmaes"), toy_space(high=0.0))


def test_tpe_is_multivariate_grouped_and_sees_running_trials():
    sampler = make_sampler(StudySettings(num_startup_trials=17), SPACE)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert (sampler._multivariate, sampler._group, sampler._constant_liar) == (True, True, True)
    assert sampler._n_startup_trials == 17


def test_tpe_per_cost_divides_the_expected_improvement_by_the_root_of_the_gflops():
    space = SearchSpace(model_arch={"choices": ["ResNet50", "Custom_1"]})
    sampler = make_sampler(StudySettings(sampler="tpe_per_cost", num_startup_trials=17), space)
    assert (sampler._multivariate, sampler._group, sampler._constant_liar) == (True, True, True)
    assert sampler._n_startup_trials == 17
    bad_over_good = np.array([1.0, 1.0, 0.25, 4.0])
    samples = {"model_arch": np.array([0.0, 1.0, 0.0, 1.0])}
    good, bad = (SimpleNamespace(log_pdf=lambda _, of=of: np.log(of)) for of in (np.ones(4), bad_over_good))
    gflops = np.array([8.017043456, 1.647470592, 8.017043456, 1.647470592])
    per_cost = 1 / (0.1 + 0.9 * bad_over_good) / np.sqrt(gflops)
    assert np.exp(sampler._compute_acquisition_func(samples, good, bad)) == pytest.approx(per_cost, rel=1e-12)
    others = sampler._compute_acquisition_func({"learning_rate": np.ones(4)}, good, bad)
    assert np.exp(others) == pytest.approx(1 / bad_over_good, rel=1e-12)


def test_without_architectures_to_choose_from_tpe_per_cost_is_tpe():
    assert type(make_sampler(StudySettings(sampler="tpe_per_cost"), SPACE)) is optuna.samplers.TPESampler
