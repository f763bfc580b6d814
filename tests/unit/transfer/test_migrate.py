import json
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from csi_job.errors import ConfigurationError
from csi_job.storage.storage import StudyStorage
from csi_job.study.definition import Definition, define_study, load_study
from csi_job.study.settings import StudySettings
from csi_job.transfer.migrate import Migration, migrate_study
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.space import BASELINE, SearchSpace
from tests.support.reader import Reader
from tests.support.studies import CACHE_KEY

SMALL = {"model_arch": {"value": "Custom_1"}, "optimizer": {"choices": ["adam", "sgd"]}}
BASE = {**BASELINE.model_dump(), "model_arch": "Custom_1"}
PARAMS = Hyperparameters(model_arch="Custom_1").to_params()
SGD = {"optimizer": "sgd", "weight_decay": 1e-4, "momentum": 0.9}


def space_of(changes: dict[str, Any]) -> SearchSpace:
    return SearchSpace.model_validate({**SMALL, **changes})


def add(study: optuna.Study, space: SearchSpace, state: TrialState = TrialState.COMPLETE, **parts: Any) -> None:
    """Add a trial as the space would have drawn it."""
    drawn, kinds = {**PARAMS, **parts.pop("params", {})}, space.distributions()
    params = {name: value for name, value in drawn.items() if name in kinds}
    kinds = {name: kinds[name] for name in params}
    value = 0.5 if state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    steps = {"intermediate_values": {0: 0.25, 1: 0.5}}
    study.add_trial(create_trial(state=state, value=value, params=params, distributions=kinds, **steps, **parts))


def definition_of(settings: StudySettings, space: SearchSpace, **parts: Any) -> Definition:
    return Definition.of(settings, space, **{"baseline": BASE, "cache_key": CACHE_KEY, **parts})


def define_old(storage: StudyStorage, space: SearchSpace, num_trials: int = 9, **settings: Any) -> optuna.Study:
    given = StudySettings(name="old", num_trials=num_trials, **settings)
    return define_study(storage, definition_of(given, space))


def finish_baseline(study: optuna.Study) -> None:
    """Let the waiting baseline be complete, as if a worker had run it."""
    storage = study._storage._backend
    space = space_of({})
    add(study, space, user_attrs={"baseline": True})
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM trial_user_attributes WHERE trial_id = 1")
        connection.exec_driver_sql("DELETE FROM trial_system_attributes WHERE trial_id = 1")
        connection.exec_driver_sql("DELETE FROM trials WHERE trial_id = 1")
        connection.exec_driver_sql("UPDATE trials SET number = 0")


def migrate(storage: StudyStorage, space: SearchSpace, new: str = "new", **parts: Any) -> Migration:
    settings = StudySettings(**parts.pop("settings", {})).model_copy(update={"name": new})
    num_trials = parts.pop("num_trials", None)
    return migrate_study(storage, "old", definition_of(settings, space, **parts), num_trials=num_trials)


@pytest.fixture
def old(storage):
    """The baseline, five finished trials, and three that are not."""
    space = space_of({})
    study = define_old(storage, space)
    finish_baseline(study)
    add(study, space, params=SGD)
    add(study, space, params={"batch_size": 128})
    add(study, space, params={"batch_size": 128, "learning_rate": 0.05})
    add(study, space, TrialState.PRUNED, params={"learning_rate": 0.05})
    mark = {"infeasible": True, "reason": "no memory"}
    add(study, space, TrialState.PRUNED, user_attrs=mark, system_attrs={"constraints:trainable": 1.0, "cma:0": "x"})
    add(study, space, TrialState.FAIL)
    study.enqueue_trial({"batch_size": 16})
    return study


def test_a_wider_space_carries_every_finished_trial(storage, old, tmp_path):
    wider = space_of({"optimizer": {"choices": ["adam", "adamw", "sgd"]}, "learning_rate": {"low": 1e-6, "high": 1.0}})
    done = migrate(storage, wider)
    assert (done.num_migrated, done.num_there, done.num_finished, done.num_waiting, done.target) == (6, 0, 6, 0, 9)
    assert done.reasons == (("failed", 1), ("still waiting", 1))
    new = optuna.load_study(study_name="new", storage=f"sqlite:///{tmp_path}/studies.db")
    assert [trial.number for trial in new.trials] == list(range(6))
    for trial, before in zip(new.trials, old.trials, strict=False):
        assert trial.params == before.params
        assert trial.state == before.state
        assert trial.values == before.values
        assert trial.intermediate_values == before.intermediate_values
        assert (trial.datetime_start, trial.datetime_complete) == (before.datetime_start, before.datetime_complete)
        assert trial.user_attrs["migrated_from"] == {
            "study": "old",
            "uid": old.user_attrs["uid"],
            "trial": before.number,
        }
        kinds = {name: kind for name, kind in wider.distributions().items() if name in trial.params}
        assert trial.distributions == kinds
    assert new.trials[5].system_attrs == {"constraints:trainable": 1.0}
    assert new.user_attrs["fingerprint"]["space"] == json.loads(json.dumps(wider.fingerprint()))
    assert [trial.number for trial in new.trials if trial.user_attrs.get("baseline")] == [0]


def test_the_epochs_of_carried_trials_count_towards_the_new_study_s_limit(storage, old):
    carried = (trial for trial in old.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED))
    num_epochs = sum(len(trial.intermediate_values) for trial in carried)
    done = migrate(storage, space_of({}), settings={"max_epochs_total": num_epochs + 1})
    assert not done.is_exhausted
    assert f"study new has {num_epochs} of {num_epochs + 1} epochs" in done.summary("old", "new")
    done = migrate(storage, space_of({}), "full", settings={"max_epochs_total": num_epochs})
    assert done.is_exhausted
    assert f"study full has {num_epochs} of {num_epochs} epochs, so no trial starts" in done.summary("old", "full")


@pytest.mark.usefixtures("old")
def test_a_narrower_space_carries_what_lies_in_it_and_counts_the_rest_by_reason(storage):
    narrower = space_of({"optimizer": {"value": "adam"}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}})
    done = migrate(storage, narrower)
    assert done.num_migrated == 3
    assert dict(done.reasons) == {
        "optimizer=sgd is not adam": 1,
        "learning_rate is not between 0.0001 and 0.01": 2,
        "failed": 1,
        "still waiting": 1,
    }
    assert [trial.params["optimizer"] for trial in load_study(storage, "new").trials] == ["adam"] * 3


@pytest.mark.usefixtures("old")
def test_a_dropped_parameter_is_carried_where_the_trial_had_what_is_used_now(storage):
    done = migrate(storage, space_of({"batch_size": None}))
    assert done.num_migrated == 4
    assert ("batch_size=128 is not 32, and batch_size is not searched", 2) in done.reasons
    assert "batch_size" not in load_study(storage, "new").trials[0].params


def test_a_parameter_that_the_old_study_did_not_search_had_its_default(storage):
    without = space_of({"unknown_weight": None})
    study = define_old(storage, without)
    add(study, without)
    done = migrate(storage, space_of({"unknown_weight": {"low": 0.1, "high": 1.0}}))
    carried = load_study(storage, "new").trials[-1]
    assert done.num_migrated == 1
    assert carried.params["unknown_weight"] == 0.3
    done = migrate(storage, space_of({"unknown_weight": {"low": 0.5, "high": 1.0}}), "other")
    assert done.num_migrated == 0
    assert dict(done.reasons) == {
        "unknown_weight=0.3, which was not searched, is not between 0.5 and 1.0": 1,
        "still waiting": 1,
    }


@pytest.mark.usefixtures("old")
def test_the_sampler_uses_carried_trials(storage):
    space = space_of({"batch_size": {"choices": [8, 16, 32, 64, 128]}})
    migrate(storage, space)
    settings = StudySettings(name="new", num_startup_trials=2)
    new = define_study(storage, definition_of(settings, space))
    seen = [trial for trial in new.trials if trial.state.is_finished()]
    groups = optuna.search_space._GroupDecomposedSearchSpace().calculate(new).search_spaces
    assert sum(len(group) for group in groups) == len(space.distributions())
    assert {kind for group in groups for kind in group.items()} == {*space.distributions().items()}
    assert len(seen) == 6


def test_a_second_run_carries_only_what_was_finished_since(storage, old):
    space = space_of({"patience": {"low": 5, "high": 40}})
    assert migrate(storage, space).num_migrated == 6
    add(old, space_of({}), params={"patience": 7})
    second = migrate(storage, space)
    assert (second.num_migrated, second.num_there, second.num_finished) == (1, 6, 7)
    third = migrate(storage, space)
    assert (third.num_migrated, third.num_there, third.num_finished) == (0, 7, 7)
    assert [trial.number for trial in load_study(storage, "new").trials] == list(range(7))


def test_a_trial_keeps_its_origin_over_several_studies(storage, old):
    migrate(storage, space_of({"patience": {"low": 5, "high": 40}}))
    migrate(storage, space_of({"patience": {"low": 5, "high": 60}}), "third")
    third = definition_of(StudySettings(name="third"), space_of({"patience": {"low": 5, "high": 60}}))
    again = migrate_study(storage, "new", third)
    assert (again.num_migrated, again.num_there) == (0, 6)
    back = migrate_study(storage, "new", definition_of(StudySettings(name="old"), space_of({})))
    assert (back.num_migrated, back.num_there) == (0, 6)
    assert len(old.trials) == 8


@pytest.mark.usefixtures("old")
def test_a_baseline_that_is_not_carried_waits_as_trial_0(storage):
    done = migrate(storage, space_of({"batch_size": {"choices": [64, 128]}}))
    new = load_study(storage, "new")
    assert (done.num_migrated, done.num_waiting) == (2, 1)
    assert [trial.state for trial in new.trials] == [TrialState.WAITING, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [bool(trial.user_attrs.get("baseline")) for trial in new.trials] == [True, False, False]


@pytest.mark.usefixtures("old")
def test_another_baseline_is_run_and_the_old_one_is_a_trial_like_others(storage):
    done = migrate(storage, space_of({}), baseline={**BASE, "patience": 11})
    new = load_study(storage, "new")
    assert (done.num_migrated, done.num_waiting) == (6, 1)
    assert [trial.number for trial in new.trials if trial.user_attrs.get("baseline")] == [0]
    assert new.trials[0].system_attrs["fixed_params"]["patience"] == 11


def test_the_total_is_given_or_the_old_one_or_enough(storage, old):
    assert migrate(storage, space_of({}), "a", num_trials=20).target == 20
    assert migrate(storage, space_of({}), "a").target == 20
    with pytest.raises(ConfigurationError, match="--n-trials 6"):
        migrate(storage, space_of({}), "b", num_trials=5)
    assert "b" not in [study.study_name for study in storage.get_all_studies()]
    old.set_user_attr("target", 6)
    done = migrate(storage, space_of({}), "c", baseline={**BASE, "patience": 11})
    assert (done.target, done.num_finished, done.num_waiting) == (7, 6, 1)
    assert load_study(storage, "c").user_attrs["target"] == 7


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"cache_key": "f" * 16}, "cache"),
        ({"average": "weighted"}, "trial.objective_average"),
        ({"settings": {"objective": "f1-and-cost"}}, "study.objective"),
    ],
)
@pytest.mark.usefixtures("old")
def test_what_makes_values_incomparable_is_refused_by_name(storage, parts, expected):
    with pytest.raises(ConfigurationError, match=rf"only the space may differ.*'old': {expected} \(was") as caught:
        migrate(storage, space_of({"patience": {"value": 10}}), **parts)
    assert "space." not in str(caught.value)
    assert [study.study_name for study in storage.get_all_studies()] == ["old"]


def test_a_new_study_of_other_settings_is_refused_and_stays(storage, old):
    migrate(storage, space_of({"patience": {"value": 10}}))
    add(old, space_of({}))
    with pytest.raises(ConfigurationError, match=r"'new' was created with other settings: space\.patience"):
        migrate(storage, space_of({"patience": {"value": 11}}))
    assert len(load_study(storage, "new").trials) == 6


@pytest.mark.parametrize(("name", "expected"), [("old", "into itself"), ("a/b", "cannot have this name")])
@pytest.mark.usefixtures("old")
def test_an_invalid_name_is_rejected(storage, name, expected):
    with pytest.raises(ConfigurationError, match=expected):
        migrate(storage, space_of({}), name)


def test_a_study_that_is_missing_or_another_programs_is_refused(storage):
    with pytest.raises(ConfigurationError, match="no study of this name"):
        migrate(storage, space_of({}))
    optuna.create_study(storage=storage, study_name="old")
    with pytest.raises(ConfigurationError, match="another program"):
        migrate(storage, space_of({}))
    assert [study.study_name for study in storage.get_all_studies()] == ["old"]


@pytest.mark.usefixtures("old")
def test_a_failure_in_between_leaves_nothing(storage, monkeypatch, tmp_path):
    monkeypatch.setattr("csi_job.transfer.migrate.store_target", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate(storage, space_of({}))
    reader = Reader(f"sqlite:///{tmp_path}/studies.db")
    assert reader.rows("SELECT count(*) FROM studies") == [(1,)]
    assert reader.rows("SELECT count(*) FROM trials") == [(8,)]


@pytest.mark.usefixtures("old")
def test_an_answer_to_commit_that_was_lost_carries_nothing_twice(storage, monkeypatch):
    write = storage.write
    monkeypatch.setattr(storage, "write", lambda operation: (write(operation), write(operation))[1])
    done = migrate(storage, space_of({}))
    assert (done.num_migrated, done.num_there) == (6, 0)
    assert len(load_study(storage, "new").trials) == 6


def test_two_objectives_keep_both_values(storage):
    space = space_of({})
    study = define_old(storage, space, objective="f1-and-cost")
    study.add_trial(
        create_trial(
            values=[0.5, 3.0], params=PARAMS, distributions={n: space.distributions()[n] for n in PARAMS},
            user_attrs={"curve": [[0, 0.5]]},
        )
    )  # fmt: skip
    done = migrate(storage, space_of({"patience": {"value": 10}}), settings={"objective": "f1-and-cost"})
    new = load_study(storage, "new")
    assert done.num_migrated == 1
    assert new.best_trials[0].values == [0.5, 3.0]
    assert new.best_trials[0].user_attrs["curve"] == [[0, 0.5]]
    assert isinstance(new.best_trials[0].distributions["batch_size"], CategoricalDistribution)
    assert isinstance(new.best_trials[0].distributions["learning_rate"], FloatDistribution)
