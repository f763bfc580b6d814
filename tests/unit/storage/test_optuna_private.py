"""The private names of Optuna exist in the installed version and mean what we take them for."""

import logging
import math
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from csi_job.errors import ConfigurationError
from csi_job.storage import optuna_private as private
from csi_job.storage.tables import ALEMBIC_VERSION

MINOR_VERSION = "5.0"


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=f"sqlite:///{tmp_path}/plain.db", direction="maximize")


def test_optuna_is_the_version_whose_private_names_were_checked():
    assert optuna.__version__.startswith(f"{MINOR_VERSION}.")
    pin = Path(__file__).parents[3] / "pyproject.toml"
    assert f'"optuna~={MINOR_VERSION}.0"' in pin.read_text()


def test_the_storage_in_memory_logs_under_the_name_that_is_silenced(caplog, monkeypatch):
    caplog.set_level(logging.INFO, private.IN_MEMORY_LOGGER)
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    optuna.create_study()
    assert {record.name for record in caplog.records} == {private.IN_MEMORY_LOGGER}


def test_ids_are_the_keys_of_the_tables(study):
    other = optuna.create_study(storage=private.backend_of(study), study_name="other")
    trial = other.ask()
    assert private.backend_of(study).get_study_id_from_name("other") == private.study_id_of(other)
    assert private.study_id_of(private.backend_of(study).get_all_studies()[1]) == private.study_id_of(other)
    assert private.backend_of(study).get_trial(private.trial_id_of(trial)) == other.trials[0]
    assert private.trial_id_of(other.trials[0]) == private.trial_id_of(trial)


def test_the_backend_is_below_the_cache(study):
    assert isinstance(private.backend_of(study), RDBStorage)
    assert isinstance(private.backend_of(optuna.create_study()), optuna.storages.InMemoryStorage)


def test_a_refresh_shows_the_trials_of_others(study):
    assert study._get_trials(deepcopy=False, use_cache=True) == []
    other = optuna.load_study(study_name=study.study_name, storage=private.backend_of(study))
    other.ask()
    assert study._get_trials(deepcopy=False, use_cache=True) == []
    private.refresh_trials(study)
    assert len(study._get_trials(deepcopy=False, use_cache=True)) == 1


def test_the_frozen_trial_holds_what_a_pruner_looks_at(study):
    trial = study.ask()
    private.frozen_trial_of(trial).intermediate_values[3] = 0.5
    assert trial.should_prune() is study.pruner.prune(study, private.frozen_trial_of(trial))
    assert private.frozen_trial_of(trial).last_step == 3


def test_the_bracket_is_the_one_in_which_optunas_hyperband_compares(study, monkeypatch):
    study.add_trials([create_trial(state=TrialState.WAITING) for _ in range(40)])
    pruner, selected = HyperbandPruner(1, 16, 4), list[int]()
    monkeypatch.setattr(pruner, "_create_bracket_study", lambda study, bracket: selected.append(bracket) or study)
    for trial in study.trials:
        pruner.prune(study, trial)
    assert {*selected} == {0, 1, 2}
    assert [private.hyperband_bracket(HyperbandPruner(1, 16, 4), study, trial) for trial in study.trials] == selected


def test_the_tables_have_the_columns_that_are_written():
    columns = {name: {column.name for column in table.columns} for name, table in private.METADATA.tables.items()}
    of_key = {"key", "value_json"}
    assert columns == {
        "studies": {"study_id", "study_name"},
        "study_directions": {"study_direction_id", "study_id", "direction", "objective"},
        "study_user_attributes": {"study_user_attribute_id", "study_id", *of_key},
        "study_system_attributes": {"study_system_attribute_id", "study_id", *of_key},
        "trials": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
        "trial_params": {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
        "trial_values": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
        "trial_intermediate_values": {
            *("trial_intermediate_value_id", "trial_id", "step"),
            *("intermediate_value", "intermediate_value_type"),
        },
        "trial_user_attributes": {"trial_user_attribute_id", "trial_id", *of_key},
        "trial_system_attributes": {"trial_system_attribute_id", "trial_id", *of_key},
        "trial_heartbeats": {"trial_heartbeat_id", "trial_id", "heartbeat"},
        "version_info": {"version_info_id", "schema_version", "library_version"},
    }


@pytest.mark.parametrize("number", [0.25, math.inf, -math.inf])
def test_numbers_are_stored_as_a_value_and_a_type(number):
    assert private.from_stored_value(*private.to_stored_value(number)) == number
    assert private.from_stored_step(*private.to_stored_step(number)) == number
    assert private.to_stored_value(number)[1] in private.VALUE_TYPES.values()
    assert set(private.VALUE_TYPES) | {"NAN"} == set(private.STEP_TYPES) == {"FINITE", "INF_POS", "INF_NEG", "NAN"}
    assert math.isnan(private.from_stored_step(*private.to_stored_step(math.nan)))


def test_the_stored_versions_are_those_of_optuna(study):
    plain = private.backend_of(study)
    assert plain.get_head_version() == plain.get_current_version() == private.HEAD_REVISION
    inspector, ours = sa.inspect(plain.engine), sa.create_engine("sqlite://")
    ALEMBIC_VERSION.create(ours)
    for part in (inspector.__class__.get_columns, inspector.__class__.get_pk_constraint):
        assert str(part(sa.inspect(ours), "alembic_version")) == str(part(inspector, "alembic_version"))
    with plain.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT schema_version, library_version FROM version_info").one()
    assert tuple(row) == (private.SCHEMA_VERSION, optuna.__version__)


def test_times_are_stored_in_utc(study):
    study.add_trial(create_trial(value=1.0))
    plain = private.backend_of(study)
    with plain.engine.connect() as connection:
        stored = connection.execute(private.METADATA.tables["trials"].select()).one().datetime_start
    assert stored.replace(tzinfo=UTC) == study.trials[0].datetime_start.astimezone(UTC)
    assert abs((datetime.now(UTC).replace(tzinfo=None) - stored).total_seconds()) < 60


def test_what_a_distribution_contains():
    assert private.contains(FloatDistribution(0, 1), 1.0)
    assert not private.contains(FloatDistribution(0, 1), 1.5)
    assert not private.contains(CategoricalDistribution(["a", "b"]), 2)
    assert private.contains_value(CategoricalDistribution(["a", "b"]), "b")
    assert not private.contains_value(CategoricalDistribution(["a", "b"]), "c")
    assert not private.contains_value(FloatDistribution(0, 1), "c")


@pytest.mark.parametrize(
    "sampler",
    [
        RandomSampler(),
        TPESampler(n_startup_trials=2),
        CmaEsSampler(n_startup_trials=1, warn_independent_sampling=False),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_seed_determines_every_draw_of_a_sampler(sampler):
    drawn = []
    for _ in range(2):
        study = optuna.create_study(sampler=sampler)
        params = []
        for number in range(6):
            private.reseed(sampler, number)
            trial = study.ask()
            params.append((trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)))
            study.tell(trial, params[-1][0])
        drawn.append(params)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 6


@pytest.mark.parametrize("cheap", ["a", "b"])
def test_tpe_takes_the_candidate_that_improves_most_per_cost(cheap):
    costs = [1.0 if choice == cheap else 1e9 for choice in ("a", "b")]
    sampler = private.CostAwareTPESampler("choice", lambda: costs, n_startup_trials=4, multivariate=True, seed=1)
    study = optuna.create_study(sampler=sampler)
    study.optimize(
        lambda t: t.suggest_float("x", 0, 1) + 0 * len(t.suggest_categorical("choice", ["a", "b"])), n_trials=20
    )
    assert {trial.params["choice"] for trial in study.trials[:4]} == {"a", "b"}
    assert {trial.params["choice"] for trial in study.trials[4:]} == {cheap}


def test_a_sampler_without_a_known_random_state_is_refused():
    class Unknown(BaseSampler):
        def infer_relative_search_space(self, *_):
            return {}

        def sample_relative(self, *_):
            return {}

        def sample_independent(self, *_):
            return 0

    with pytest.raises(ConfigurationError, match=r"no random state.*Unknown"):
        private.reseed(Unknown(), 1)


def test_successive_halving_writes_through_the_object_it_is_given():
    class Study(private.PrunerStudy):
        direction = optuna.study.StudyDirection.MAXIMIZE
        written: dict[tuple[int, str], float] = {}  # noqa: RUF012

        def get_trials(self, *, deepcopy):
            del deepcopy
            return []

        def set_trial_system_attr(self, trial_id, key, value):
            self.written[trial_id, key] = value

    trial = create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.5})
    trial._trial_id = 7
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
    pruner.prune(Study(), trial)
    assert Study.written == {(7, "completed_rung_0"): 0.5}
