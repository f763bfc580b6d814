import pytest
from optuna.trial import create_trial

from csi_job.config import load_settings
from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import PHASE, SETTINGS
from csi_job.storage.settings import StorageSettings
from csi_job.study.record import StudyRecord, read_record
from csi_job.study_settings import results_only, stored_tree
from csi_job.trial.space import SearchSpace
from tests.support.studies import BASELINE, SPACE, define, work_on

GIVEN = {
    "space": SPACE.model_dump(),
    "baseline": BASELINE,
    "trial.class_balance": True,
    "trial.augment.enabled": False,
    "radiographs.split.seed": 7,
    "cache.image_size_px": 32,
    "study.num_startup_trials": 3,
    "evaluation.num_bootstrap": 100,
}


def record_of(work, name="toy"):
    return read_record(StorageSettings(), work, name)


def define_as_given(storage, **settings):
    made_with = load_settings(GIVEN, None, {}).settings
    return define(storage, **settings, results=results_only(made_with), tree=stored_tree(made_with))


def test_an_unusable_database_is_an_error_where_the_study_is_needed(tmp_path):
    assert read_record(StorageSettings(), tmp_path, "toy", to_continue=True) is None  # none yet
    (tmp_path / "studies.db").write_bytes(b"no database" * 500)
    assert record_of(tmp_path) is None
    with pytest.raises(ConfigurationError, match="file is not a database"):
        read_record(StorageSettings(), tmp_path, "toy", to_continue=True)


def test_the_settings_of_a_study_take_the_place_of_the_defaults(storage, tmp_path):
    define_as_given(storage)
    loaded = load_settings({"study.seed": 9}, None, {}).over(record_of(tmp_path))
    made_with = load_settings(GIVEN, None, {}).settings
    assert loaded.settings.trial == made_with.trial
    assert loaded.settings.space == made_with.space
    assert loaded.settings.evaluation == made_with.evaluation
    assert results_only(loaded.settings) == results_only(made_with)
    assert (loaded.settings.study.name, loaded.settings.study.seed, loaded.settings.study.num_trials) == ("toy", 9, 5)
    assert (loaded.origins["trial.class_balance"], loaded.origins["study.seed"]) == ("study", "flag study.seed")
    assert "trial.device" not in loaded.origins
    assert not loaded.is_given("study.num_trials")


def test_the_baseline_is_trial_0_also_once_it_was_moved_into_the_space(storage, tmp_path):
    study = define(storage, space=SPACE, baseline={"unknown_weight": 7.0, "optimizer": "adam"}, num_trials=1)
    assert record_of(tmp_path).baseline == {"unknown_weight": 1.0, "optimizer": "adam"}
    work_on(study, tmp_path, num_trials=1)
    baseline = load_settings({}, None, {}).over(record_of(tmp_path)).settings.baseline
    assert (baseline.unknown_weight, baseline.optimizer, baseline.patience) == (1.0, "adam", 10)


def test_the_latest_phase_continues(storage, tmp_path):
    phase = {"sampler": "random", "pruner": "none", "max_epochs": 2}
    define_as_given(storage)
    work_on(define_as_given(storage, **phase), tmp_path, **phase)
    study = load_settings({}, None, {}).over(record_of(tmp_path)).settings.study
    assert (study.sampler, study.pruner, study.max_epochs, study.num_startup_trials) == ("random", "none", 2, 3)


@pytest.mark.parametrize("value", [None, 5, "x", [1], {"a": 1}])
def test_what_another_program_stores_under_our_names_stops_no_command(storage, tmp_path, value):
    study = define_as_given(storage)
    work_on(study, tmp_path)
    known = load_settings({}, None, {}).over(record_of(tmp_path)).settings
    study.enqueue_trial({}, user_attrs=dict.fromkeys(PHASE, value))
    assert load_settings({}, None, {}).over(record_of(tmp_path)).settings == known
    study.add_trial(create_trial(value=0.1, user_attrs=dict.fromkeys(PHASE, value)))
    study.set_user_attr(SETTINGS, value)
    settings = load_settings({}, None, {}).over(record_of(tmp_path)).settings
    assert (settings.space, settings.study.name) == (known.space, "toy")


def test_stored_values_beyond_later_bounds_are_moved_to_them_and_named_once(storage, tmp_path, caplog):
    study = define_as_given(storage)
    stored = study.user_attrs[SETTINGS]
    stored |= {"evaluation": {"num_bootstrap": 2_000_000, "seed": -1}, "final_model": {"num_seeds": 5000}}
    study.set_user_attr(SETTINGS, stored)
    settings = load_settings({}, None, {}).over(record_of(tmp_path)).settings
    assert (settings.evaluation.num_bootstrap, settings.evaluation.seed) == (1_000_000, 0)
    assert settings.final_model.num_seeds == 1000
    assert caplog.messages == [
        f"the study stores {name}; using {bound}, today's limit"
        for name, bound in {
            "evaluation.num_bootstrap = 2000000": 1_000_000,
            "evaluation.seed = -1": 0,
            "final_model.num_seeds = 5000": 1000,
        }.items()
    ]
    with pytest.raises(ConfigurationError, match=r"num_bootstrap \(flag .*less than or equal to 1000000, got 3000000"):
        load_settings({"evaluation.num_bootstrap": 3_000_000}, None, {}).over(record_of(tmp_path))
    given = load_settings({"evaluation.num_bootstrap": 500}, None, {}).over(record_of(tmp_path)).settings
    assert given.evaluation.num_bootstrap == 500
    stored["evaluation"] = {"num_bootstrap": "many"}
    study.set_user_attr(SETTINGS, stored)
    with pytest.raises(ConfigurationError, match=r"num_bootstrap \(study\): must be a whole number"):
        load_settings({}, None, {}).over(record_of(tmp_path))


def test_a_study_of_an_earlier_version_has_space_and_baseline(storage, tmp_path):
    space = SearchSpace.model_validate({"momentum": {"low": 0.5, "high": 0.9, "when": {}}, "weight_decay": None})
    study = define(storage, space=space, baseline={"learning_rate": 0.01}, average="weighted", objective="f1-and-cost")
    fingerprint = study.user_attrs["fingerprint"]
    study.set_user_attr("fingerprint", {key: fingerprint[key] for key in ("space", "objective", "average", "cache")})
    study.set_user_attr("settings", None)
    settings = load_settings({}, None, {}).over(record_of(tmp_path)).settings
    assert settings.space.fingerprint() == space.fingerprint()
    assert settings.trial.objective_average == "weighted"
    assert settings.study.objective == "f1-and-cost"
    assert settings.baseline.learning_rate == 0.01


@pytest.mark.parametrize("name", ["toy", "none"])
def test_where_there_is_no_study_of_ours_there_is_no_record(tmp_path, name):
    assert read_record(StorageSettings(), tmp_path, name) is None
    assert [*tmp_path.iterdir()] == []


def test_the_only_study_will_do_where_none_is_named(storage, tmp_path):
    define(storage)
    only = read_record(StorageSettings(), tmp_path, "csi_optimization", or_only=True)
    assert only.name == "toy"
    assert read_record(StorageSettings(), tmp_path, "csi_optimization") is None
    define(storage, name="another")
    assert read_record(StorageSettings(), tmp_path, "csi_optimization", or_only=True) is None


def test_what_this_version_does_not_know_is_left_out(tmp_path):
    stored = {"trial": {"mixup": 0.2, "class_balance": True}, "gone": {"x": 1}}
    record = StudyRecord("toy", {"fingerprint": {}, "settings": stored})
    assert load_settings({}, None, {}).over(record).settings.trial.class_balance
    assert [*tmp_path.iterdir()] == []
