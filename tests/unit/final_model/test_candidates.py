import json
import statistics
from dataclasses import replace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from csi_job.errors import CsiJobError, InfeasibleTrialError
from csi_job.final_model.candidates import (
    RULE_COST,
    RULE_MEAN,
    RULE_ONE,
    Candidate,
    CandidateResult,
    Winner,
    find_candidates,
    write_optimized_params,
)
from csi_job.final_model.confirmation import Confirmation
from csi_job.final_model.hyperparams import read_hyperparams
from csi_job.final_model.seeds import SeedTrainer
from csi_job.storage.attributes import FINGERPRINT
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import WorkFolder
from tests.unit.final_model.conftest import BASELINE, SMALL, diverging, kept, recipe, study_of, write_hyperparams

LOW, HIGH = {"learning_rate": 1e-3}, {"learning_rate": 3e-3}


def hyperparams(tmp_path, **changes):
    path = write_hyperparams(tmp_path / "b.json", **changes)
    return read_hyperparams(path, default_study="s", default_max_epochs=9)


def rates(candidates) -> list[float]:
    return [candidate.recipe.params.learning_rate for candidate in candidates]


class Shelf(SeedTrainer):
    """Results as if they had been trained before."""

    def run(self, recipe, seed, advance=lambda _: None):
        advance(recipe.max_epochs)
        values, gflops = self.results.get(recipe.params.learning_rate, ([0.1] * 3, 1.0))
        return kept(seed, values[seed - 1], gflops)


def shelf(trainer, results) -> Shelf:
    stocked = Shelf(trainer.folder, trainer.cache, trainer.settings)
    object.__setattr__(stocked, "results", results)
    return stocked


def candidate(rate: float) -> Candidate:
    return Candidate(recipe(learning_rate=rate))


def confirmed(rates, seeds, trainer, reasons=None, advance=lambda _: None, **options) -> Winner:
    confirmation = Confirmation([candidate(rate) for rate in rates], BASELINE, seeds, trainer, **options)
    return confirmation.train_here(reasons or {}, advance)


def test_candidates_are_the_file_then_the_best_complete_trials_without_duplicates(tmp_path, logged):
    study = study_of((SMALL, 0.5), (HIGH, 0.4), (HIGH, 0.45), ({"learning_rate": 9e-3}, 0.1), ({"patience": 6}, 0.42))
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    found = find_candidates(hyperparams(tmp_path), study, 3, None)
    assert [(entry.trial, entry.search_value) for entry in found] == [(0, 0.5), (2, 0.45), (4, 0.42)]
    assert [entry.recipe.max_epochs for entry in found] == [2, 2, 2]
    assert logged.messages == []
    assert len(find_candidates(hyperparams(tmp_path), study, 10, 7)) == 4
    assert logged.messages == ["4 candidates instead of 10: no other complete trial is left to compare"]
    assert {entry.recipe.max_epochs for entry in find_candidates(hyperparams(tmp_path), study, 10, 7)} == {7}


def test_a_trial_that_another_program_added_outside_the_space_is_no_candidate(tmp_path):
    study = study_of((SMALL, 0.5), (HIGH, 0.4), ({"model_arch": "resnet18"}, 0.9))
    study.set_user_attr(FINGERPRINT, {"space": SearchSpace().fingerprint()})
    found = find_candidates(hyperparams(tmp_path), study, 3, None)
    assert [entry.trial for entry in found] == [0, 1]


@pytest.mark.parametrize("other", ["as many as it takes", 0, -3, True, [7]])
def test_what_another_program_keeps_under_max_epochs_is_no_number_of_epochs(tmp_path, other):
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"max_epochs": other}))
    assert [entry.recipe.max_epochs for entry in find_candidates(hyperparams(tmp_path), study, 3, None)] == [2, 2]


@pytest.mark.parametrize("changes", [{"confirmed": True}, {"study": None}])
def test_a_confirmed_or_handwritten_file_or_one_without_a_study_is_the_only_candidate(tmp_path, changes):
    study = study_of((HIGH, 0.9))
    assert rates(find_candidates(hyperparams(tmp_path, **changes), study, 3, None)) == [1e-3]
    assert len(find_candidates(hyperparams(tmp_path), study, 1, None)) == 1
    assert len(find_candidates(hyperparams(tmp_path), None, 3, None)) == 1


def test_with_two_objectives_candidates_are_on_the_pareto_front(tmp_path):
    study = study_of((LOW, [0.5, 2.0]), ({"learning_rate": 2e-3}, [0.4, 3.0]), (HIGH, [0.3, 1.0]))
    assert rates(find_candidates(hyperparams(tmp_path), study, 3, None)) == [1e-3, 3e-3]
    study.set_user_attr(FINGERPRINT, {"space": SearchSpace().fingerprint()})
    other = {"params": {"model_arch": "vgg11"}, "distributions": {"model_arch": CategoricalDistribution(["vgg11"])}}
    study.add_trial(optuna.trial.create_trial(values=[0.99, 0.1], **other))  # beats them all
    assert rates(find_candidates(hyperparams(tmp_path), study, 3, None)) == [1e-3, 3e-3]


def test_the_best_mean_wins_not_the_best_single_seed(trainer):
    results = {1e-3: ([0.9, 0.1, 0.2], 1.0), 3e-3: ([0.5, 0.5, 0.6], 5.0)}
    winner = confirmed((1e-3, 3e-3), (1, 2, 3), shelf(trainer, results))
    assert rates([winner.result.candidate]) == [3e-3]
    assert winner.rule == RULE_MEAN
    assert winner.result.mean == pytest.approx(statistics.fmean([0.5, 0.5, 0.6]))
    assert winner.result.std == pytest.approx(statistics.stdev([0.5, 0.5, 0.6]))
    assert winner.result.best.seed == 3


@pytest.mark.parametrize(("cheap_mean", "expected"), [(0.55, 3e-3), (0.3, 1e-3)])
def test_the_cheapest_within_the_leaders_std_wins_where_cost_counts(trainer, cheap_mean, expected):
    results = {1e-3: ([0.5, 0.6, 0.7], 9.0), 3e-3: ([cheap_mean] * 3, 1.0)}
    winner = confirmed((1e-3, 3e-3), (1, 2, 3), shelf(trainer, results), prefer_cheap=True)
    assert rates([winner.result.candidate]) == [expected]
    assert winner.rule == RULE_COST


def test_more_candidates_and_seeds_reuse_what_is_finished(trainer):
    first = confirmed([1e-3], (1,), trainer)
    before = {path: path.stat().st_mtime_ns for path in trainer.folder.rglob("*.safetensors")}
    advanced = []
    second = confirmed((1e-3, 3e-3), (1, 2), trainer, advance=advanced.append)
    assert second.candidates[0].seeds[0] == first.result.seeds[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(trainer.folder.rglob("*.safetensors"))) == 6  # with the baseline's
    assert sum(advanced) == 12


def test_a_candidate_that_cannot_be_trained_is_left_out_with_its_reason(trainer):
    reasons = {trainer.recipe_digest(candidate(1e-3).recipe): "out of memory"}
    advanced = []
    stocked = shelf(trainer, {3e-3: ([0.5, 0.6], 1.0)})
    winner = confirmed((1e-3, 3e-3), (1, 2), stocked, reasons, advanced.append)
    assert sum(advanced) == 12  # of two candidates and the baseline, two seeds and two epochs each
    assert rates([winner.result.candidate]) == [3e-3]
    assert winner.candidates[0].reason == "out of memory"


def test_no_trainable_candidate_is_a_one_line_error(trainer, tmp_path):
    with pytest.raises(InfeasibleTrialError, match="none of the 1 candidates can be trained here: the training loss"):
        confirmed([1e-3], (1,), replace(trainer, settings=diverging(tmp_path)))


def test_optimized_params_list_all_candidates_and_read_as_confirmed(trainer, tmp_path):
    results = {1e-3: ([0.5, 0.6], 1.0), 3e-3: ([0.7, 0.9], 2.0)}
    candidates = [Candidate(recipe(), 4, 0.55), Candidate(recipe(learning_rate=3e-3), 7, 0.5)]
    winner = Confirmation(candidates, BASELINE, (1, 2), shelf(trainer, results)).train_here({})
    path = write_optimized_params(winner, "s", "abc", WorkFolder(tmp_path).optimized_params("s"))
    content = json.loads(path.read_text())
    assert path.name == "s_optimized_params.json"
    assert (content["trial"], content["value"], content["seeds"]) == (7, pytest.approx(0.8), [1, 2])
    assert [row["winner"] for row in content["candidates"]] == [False, True]
    assert [row["search_value"] for row in content["candidates"]] == [0.55, 0.5]
    file = read_hyperparams(path, default_study="x", default_max_epochs=1)
    assert file.is_confirmed
    assert file.params == Hyperparameters.from_params(SMALL | HIGH)


def test_a_candidate_without_results_is_written_as_null():
    poor, good = CandidateResult(candidate(1e-3), (), "no memory"), CandidateResult(candidate(3e-3), (kept(1, 0.5),))
    row = poor.to_json(winner=False)
    assert (row["mean"], row["std"], row["gflops"], row["reason"]) == (None, None, None, "no memory")
    assert good.to_json(winner=True)["seeds"] == [{"seed": 1, "val_f1": 0.5, "best_epoch": 1, "num_epochs": 2}]


def test_one_candidate_has_its_own_rule_one_seed_no_std_and_unwritable_params_are_an_error(trainer, tmp_path):
    winner = confirmed([1e-3], (1,), shelf(trainer, {1e-3: ([0.5], 1.0)}))
    assert (winner.result.std, winner.rule) == (None, RULE_ONE)
    (tmp_path / "models").touch()
    with pytest.raises(CsiJobError, match="cannot be written"):
        write_optimized_params(winner, "s", "", WorkFolder(tmp_path).optimized_params("s"))
