import optuna
import pytest

from csi_job.errors import ConfigurationError
from csi_job.storage.optuna_private import reseed
from csi_job.study.sampling import derived_seed, make_sampler
from csi_job.study.settings import StudySettings
from tests.support.studies import SPACE, define, toy_space, work_on


def test_every_trial_has_a_seed_of_its_own():
    seeds = {derived_seed(study_seed, number) for study_seed in range(20) for number in range(500)}
    assert len(seeds) == 20 * 500
    assert derived_seed(42, 7) == derived_seed(42, 7)


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes"])
def test_no_two_trials_draw_the_same_point_and_a_second_study_draws_the_same(name, storage, tmp_path):
    given = {"num_trials": 14, "max_epochs": 1, "sampler": name, "pruner": "none", "num_startup_trials": 4}
    drawn = []
    for study_name in ("one", "two"):
        study = define(storage, name=study_name, **given)
        work_on(study, tmp_path, name=study_name, **given)
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


def test_cmaes_learns_through_trials_with_and_without_a_conditional_number(storage, tmp_path, caplog):
    caplog.set_level("INFO")
    given = {"num_trials": 30, "max_epochs": 1, "sampler": "cmaes", "pruner": "none", "num_startup_trials": 1}
    study = define(storage, **given)
    work_on(study, tmp_path, **given)
    modelled = [trial for trial in study.trials if any(key.startswith("cma:") for key in trial.system_attrs)]
    assert len(modelled) >= 25
    assert caplog.text.count("CMA-ES models unknown_weight and samples optimizer, patience at random") == 1
    assert {trial.params["optimizer"] for trial in modelled} == {"adam", "sgd"}


def test_cmaes_needs_a_number():
    with pytest.raises(ConfigurationError, match="needs a number"):
        make_sampler(StudySettings(sampler="cmaes"), toy_space(high=0.0))


def test_tpe_is_multivariate_grouped_and_sees_running_trials():
    sampler = make_sampler(StudySettings(num_startup_trials=17), SPACE)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert (sampler._multivariate, sampler._group, sampler._constant_liar) == (True, True, True)
    assert sampler._n_startup_trials == 17
