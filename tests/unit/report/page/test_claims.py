"""What the page says of its numbers is no more than they show."""

import json

import pytest

from csi_job.report.study_view import view_study
from csi_job.trial.metrics import WEIGHTED
from csi_job.trial.space import SearchSpace
from tests.unit.report.conftest import new_study, random_study, set_attributes
from tests.unit.report.page.conftest import change_json, report


def test_a_weighted_validation_f1_is_not_left_beside_the_macro_f1_of_the_test_unexplained(tmp_path, text):
    study = random_study(3)
    study.set_user_attr("fingerprint", study.user_attrs["fingerprint"] | {"average": "weighted"})
    assert WEIGHTED in report(view_study(study), tmp_path).text
    assert WEIGHTED not in text


@pytest.mark.parametrize("unseen", [True, False])
def test_test_patients_are_called_unused_only_where_that_is_known(unseen, work, view):
    change_json(work / "models" / "evaluation" / "optimized_model.json", unseen=unseen)
    assert ("patients that were not used for training or model selection." in report(view, work).text) == unseen


def test_a_difference_without_an_interval_is_shown_as_undefined_only(work, view):
    path = work / "models" / "evaluation" / "comparison.json"
    metrics = json.loads(path.read_text())["metrics"]
    metrics["f1_macro"] |= {"interval": None, "interval_reason": "because", "outcome": "undefined"}
    change_json(path, metrics=metrics)
    assert "Test F1 vs. baseline undefined" in report(view, work).text


def test_models_of_one_seed_are_not_said_to_have_several(work, view, text):
    assert "Each model was trained with 3 seeds; the one with the best validation F1 is kept." in text
    card = json.loads((work / "models" / "optimized_model.json").read_text())
    seeds = [run for run in card["seeds"] if run["seed"] == card["kept_seed"]]
    change_json(work / "models" / "optimized_model.json", seeds=seeds)
    confirmed = work / "models" / "hyperopt" / "csi_optimization_optimized_params.json"
    change_json(confirmed, seeds=json.loads(confirmed.read_text())["seeds"][:1], std=None)
    own = report(view, work).text
    assert "Each model was trained with 1 seed." in own
    assert "retrained with 1 seed, reached a validation F1 of" in own
    assert ("Trust these means" in text, "Trust these means" in own) == (True, False)


def test_a_baseline_chosen_for_its_cost_is_not_called_unbeaten(tmp_path):
    study = new_study("costs", objective="f1-and-cost", target=2)
    for f1, gflops in ((0.60, 1.5), (0.62, 4.0)):
        trial = study.ask()
        SearchSpace().suggest(trial)
        set_attributes(trial, f1_se=0.03, gflops=gflops)
        study.tell(trial, [f1, gflops])
    text = report(view_study(study), tmp_path).text
    assert "The baseline was chosen, whose validation F1 is 0.600 at 1.5 GFLOPs" in text
    assert "the highest is 0.620 of trial 1." in text
    assert "None beat the baseline" not in text
