import re
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from csi_job.errors import ConfigurationError
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.storage.study_rows import NUM_CHANGES_KEPT
from csi_job.study.definition import check_same, load_study
from csi_job.study.settings import StudySettings
from csi_job.study.studies import enqueue_trial
from csi_job.study.target import set_target
from csi_job.trial.space import SearchSpace
from tests.support.studies import BASELINE, CACHE_KEY, define, toy_space, work_on

RESULTS = {"trial": {"class_balance": False}, "cache.image_size_px": 32}


def test_a_new_study_has_target_seed_fingerprint_and_the_baseline_waiting(study):
    attributes = study.user_attrs
    assert (attributes["target"], attributes["seed"], attributes["objective"]) == (5, 42, "f1")
    assert attributes["fingerprint"]["cache"] == CACHE_KEY
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE
    [trial] = study.trials
    assert trial.state is optuna.trial.TrialState.WAITING
    assert trial.system_attrs["fixed_params"] == BASELINE
    assert trial.user_attrs == {"baseline": True}


@pytest.mark.parametrize(
    ("objective", "names"), [("f1", ["validation F1"]), ("f1-and-cost", ["validation F1", "GFLOPs per image"])]
)
def test_a_new_study_names_its_metrics(objective, names, storage):
    assert define(storage, objective=objective).metric_names == names  # as optuna-dashboard reads them


def test_defining_it_again_changes_nothing(study, storage):
    again = define(storage, num_trials=99, max_epochs=50, sampler="random", pruner="none")
    assert again.user_attrs == study.user_attrs
    assert len(again.trials) == 1
    assert isinstance(again.sampler, optuna.samplers.RandomSampler)
    assert isinstance(again.pruner, optuna.pruners.NopPruner)


def test_processes_that_define_it_at_once_make_one_study(tmp_path):
    def worker(_):
        return define(open_storage(StorageSettings(), tmp_path, create=True))

    with ThreadPoolExecutor(8) as pool:
        studies = list(pool.map(worker, range(8)))
    assert len({study._study_id for study in studies}) == 1
    assert len(studies[0].trials) == 1
    assert len({study.user_attrs["uid"] for study in studies}) == 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cache_key": "fff"}, f'cache (was "{CACHE_KEY}", now "fff")'),
        ({"average": "weighted"}, 'average (was "macro", now "weighted")'),
        ({"objective": "f1-and-cost"}, 'objective (was "f1", now "f1-and-cost")'),
        ({"space": toy_space(0.5)}, "settings: space.unknown_weight.high (was 1.0, now 0.5)"),
        ({"baseline": {**BASELINE, "unknown_weight": 0.4}}, "settings: baseline.unknown_weight (was 0.5, now 0.4)"),
        (
            {"results": {**RESULTS, "trial": {"class_balance": True}}},
            "settings: trial.class_balance (was false, now true)",
        ),
        (
            {"results": {**RESULTS, "cache.image_size_px": 64}, "cache_key": "fff"},
            "settings: cache.image_size_px (was 32, now 64)",
        ),
    ],
)
def test_a_worker_that_differs_is_refused_by_the_key(storage, changed, named):
    define(storage, results=RESULTS)
    with pytest.raises(ConfigurationError, match=rf"{re.escape(named)};.*another study name"):
        define(storage, **{"results": RESULTS, **changed})


def test_only_another_space_can_be_migrated_to(storage):
    define(storage, results=RESULTS)
    with pytest.raises(ConfigurationError, match="csi-job study migrate toy NEW"):
        define(storage, results=RESULTS, space=toy_space(0.5))
    with pytest.raises(ConfigurationError, match=r"name$"):
        define(storage, space=toy_space(0.5), results={**RESULTS, "trial": {"class_balance": True}})


def test_weights_that_are_not_named_are_asked_for(storage):
    define(storage, results={"trial": {"pretrained": "0a1b"}})
    with pytest.raises(ConfigurationError, match=r'was "0a1b", now "none"\); give --pretrained FILE'):
        define(storage, results={"trial": {"pretrained": "none"}})


def test_a_study_of_an_earlier_version_continues_and_says_once_what_is_unknown(storage, caplog):
    study = define(storage)
    old = {key: study.user_attrs["fingerprint"][key] for key in ("space", "objective", "average", "cache")}
    study.set_user_attr("fingerprint", old)
    assert define(storage, results=RESULTS, baseline={"unknown_weight": 0.9}).trials == study.trials
    unknown = "did not store baseline, cache.image_size_px, trial; give the same values as then"
    assert caplog.text.count(unknown) == 1


@pytest.mark.parametrize(
    "given", [{"sampler": "cmaes"}, {"sampler": "tpe_per_cost"}, {"pruner": "asha"}, {"pruner": "hyperband"}]
)
def test_what_knows_one_objective_is_refused_before_the_study_is_made(storage, given):
    with pytest.raises(ConfigurationError, match="one objective only") as refused:
        define(storage, objective="f1-and-cost", **given)
    assert storage.get_all_studies() == []
    assert str(refused.value).endswith(", auto")
    for allowed in str(refused.value).partition("allowed: ")[2].split(", "):
        define(storage, objective="f1-and-cost", **dict.fromkeys(given, allowed))


def test_another_seed_is_ignored_with_a_warning(study, storage, caplog):
    again = define(storage, seed=7)
    assert "created with seed 42; using that seed" in caplog.text
    assert again.user_attrs["seed"] == study.user_attrs["seed"] == 42


def test_a_study_of_another_program_is_refused(storage):
    optuna.create_study(storage=storage, study_name="toy")
    with pytest.raises(ConfigurationError, match="another program"):
        define(storage)


def test_a_baseline_outside_the_space_moves_with_a_warning(storage, caplog):
    study = define(storage, name="narrow", space=toy_space(0.2))
    assert study.trials[0].system_attrs["fixed_params"]["unknown_weight"] == 0.2
    assert "baseline: unknown_weight 0.5 is outside the search space" in caplog.text


def test_a_study_that_is_not_there_is_refused_with_those_that_are(study, storage):
    with pytest.raises(ConfigurationError, match=r"no study of this name, got 'toys'; allowed: toy"):
        load_study(storage, "toys")
    assert load_study(storage, "toy").trials == study.trials


def test_the_target_can_be_set_and_raised(study, tmp_path):
    assert set_target(study, num_trials=2) == 2
    work_on(study, tmp_path)
    assert len(study.trials) == 2
    assert set_target(study, more_trials=1) == 3
    work_on(study, tmp_path)
    assert len(study.trials) == 3
    with pytest.raises(ConfigurationError, match=r"3 finished and 0 running or paused trials.*got 1; .*--n-trials 3"):
        set_target(study, num_trials=1)
    assert set_target(study, num_trials=1, lenient=True) == 3
    assert set_target(study, more_trials=2) == 5
    enqueue_trial(study, toy_space(), {})
    assert set_target(study, num_trials=1, lenient=True) == 4  # with the enqueued one
    assert set_target(study, num_trials=3) == 3
    assert [trial.state.name for trial in study.trials] == [*["COMPLETE"] * 3, "FAIL"]
    study.enqueue_trial({"unknown_weight": 0.2})  # by Optuna, which knows no total
    assert set_target(study, num_trials=1, lenient=True) == 3
    assert set_target(study, more_trials=1) == 4
    work_on(study, tmp_path)
    assert set_target(study, more_trials=1) == 5  # the first is finished


def test_an_unchanged_total_of_a_file_does_not_undo_an_addition(storage, logged):
    study = define(storage, tree={"study": {"num_trials": 5}})
    assert set_target(study, more_trials=3) == 8
    assert set_target(study, num_trials=5, lenient=True) == 8
    kept = "study toy keeps its total of trials, 8; it was changed after these settings gave 5"
    assert logged.messages == [kept]
    assert set_target(study, num_trials=6, lenient=True) == 6
    assert set_target(study, num_trials=5, lenient=True) == 5
    assert set_target(study, more_trials=2, token="a") == 7
    assert set_target(study, num_trials=5, lenient=True) == 7
    assert set_target(study, num_trials=5) == 5
    for total in range(6, 6 + NUM_CHANGES_KEPT):
        set_target(study, num_trials=total)
    assert set_target(study, more_trials=3) == set_target(study, more_trials=3)  # the last changes are kept


def test_trials_that_another_tool_added_beyond_the_total_are_not_taken_from_an_addition(study):
    for _ in range(7):
        study.add_trial(optuna.trial.create_trial(value=0.5))
    assert set_target(study, more_trials=2) == 9


def test_an_interrupted_addition_is_continued_and_a_finished_one_is_repeated(study, tmp_path, logged):
    assert [set_target(study, more_trials=3) for _ in range(3)] == [8, 8, 8]
    assert logged.text.count("continuing towards 8 trials, to which an earlier --more-trials 3 raised the total") == 2
    assert set_target(study, num_trials=8, lenient=True) == 8  # which changes nothing, and so settles nothing
    assert "lowering" not in logged.text
    assert set_target(study, more_trials=3) == 8
    assert set_target(study, more_trials=1) == 9  # another command
    assert set_target(study, more_trials=3) == 9
    work_on(study, tmp_path, num_trials=9)
    assert [set_target(study, more_trials=3) for _ in range(2)] == [12, 12]
    assert set_target(study, num_trials=10) == 10
    assert "lowering the total of study toy, which all its workers share, from 12 to 10 trials" in logged.text
    assert set_target(study, more_trials=3) == 13
    assert [set_target(study, more_trials=3, token="another command") for _ in range(2)] == [16, 16]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "é" * 101, "語" * 99])
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        StudySettings(name=name)


@pytest.mark.parametrize("name", ["csi_optimization", "étude 1", "phase-2 (b)", "100%"])
def test_other_names_are_taken(name, storage, tmp_path):
    study = define(storage, name=name, num_trials=1)
    work_on(study, tmp_path, name=name)
    assert study.best_trial.number == 0


def test_what_an_earlier_version_did_not_store_is_not_compared_and_many_differences_are_counted():
    check_same({"a": 1}, {"a": 1, "b": {"c": 2}}, "toy")
    with pytest.raises(ConfigurationError, match=r"a \(was 1, now absent\), c\.d \(was absent, now 2\);"):
        check_same({"a": 1, "c": {}}, {"b": 3, "c": {"d": 2}}, "toy")
    with pytest.raises(ConfigurationError, match=r"and 5 more"):
        check_same({str(i): 1 for i in range(15)}, {str(i): 2 for i in range(15)}, "toy")


def test_a_step_of_1_is_compared_as_none_but_stored_as_given_for_workers_of_an_earlier_version():
    def fingerprint(**form):
        return {"space": SearchSpace.model_validate({"patience": {"low": 5, "high": 20, **form}}).fingerprint()}

    bare, stepped = fingerprint(), fingerprint(step=1)
    assert bare["space"]["patience"] == {"low": 5, "high": 20}
    check_same(bare, stepped, "toy")
    check_same(stepped, bare, "toy")
    for other, change in ({"step": 3}, r"step \(was 1, now 3\);"), ({"log": True}, "log .was absent, now true."):
        with pytest.raises(ConfigurationError, match=rf"space\.patience\.{change}"):
            check_same(bare, fingerprint(**other), "toy")
