from dataclasses import replace

import numpy as np
import pytest

from csi_job.evaluation.decision import Decision, decide
from csi_job.evaluation.difference import compare_with_trivial
from csi_job.evaluation.evaluate import compare_evaluations
from csi_job.evaluation.page import comparison_page, evaluation_page
from csi_job.evaluation.run import EvaluationRun
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.terminal.evaluation import render_comparison, render_evaluation, render_run
from tests.unit.evaluation.conftest import certain, evaluated, random_predictions
from tests.unit.terminal.conftest import shown

DECISION = Decision("Keep the baseline", "Because.", ("And so on.",))
QUICK = EvaluationSettings(num_bootstrap=200, seed=1)


def test_an_evaluation_fits_eighty_columns_without_cutting_a_value():
    predictions = random_predictions(60, 0)
    evaluation = evaluated(predictions, QUICK, "optimized_model.safetensors")
    evaluation = replace(evaluation, trivial=compare_with_trivial(predictions, predictions.zones_NZ, QUICK))
    text = shown(render_evaluation(evaluation), 80)
    metric = evaluation.metrics["f1_macro"]
    assert f"{metric.value:.3f}  {metric.interval.low:.3f} to {metric.interval.high:.3f}" in text
    assert "right_sup" in text
    for who in ("commonest", "median"):
        assert f"MAE {evaluation.trivial[who]['zones']['left_inf']['mae']['baseline']:.3f}" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("zones", "reason"),
    [
        (np.full((4, 6), 2), "all images are of one risk class"),
        (np.full((4, 6), 4), "no image has a graded zone"),
        ([*[[0] * 6] * 2, *[[2] * 6] * 4], "of 200 resamples"),
        ([[0] * 6, *[[2] * 6] * 5], "measured on fewer than two patients"),
    ],
)
def test_undefined_metrics_are_shown_with_their_reason(zones, reason):
    text = shown(render_evaluation(evaluated(certain(zones), QUICK)), 120)
    assert reason in text
    assert "nan" not in text.lower()


def test_a_comparison_fits_eighty_columns_and_warns_of_the_baseline_alone():
    predictions = random_predictions(60, 1)
    better = certain(predictions.zones_NZ, predictions.patients_N)
    object.__setattr__(better, "pseudonyms", predictions.pseudonyms)
    model = replace(evaluated(better, QUICK), warnings=("of both",))
    comparison = compare_evaluations(model, replace(evaluated(predictions, QUICK), warnings=("of both", "of one")))
    text = shown(render_comparison(comparison), 80)
    assert "…" not in text
    assert "better" in text
    assert text.rstrip().endswith("Warning: of one.")
    assert "of both" not in text


def test_a_level_of_confidence_keeps_its_digits_on_every_page():
    evaluation = evaluated(random_predictions(60, 0), QUICK.model_copy(update={"confidence": 0.999}))
    comparison = compare_evaluations(evaluation, evaluation)
    decision = decide(evaluation.to_json(), comparison.to_json())
    texts = [shown(render_run(EvaluationRun(evaluation, comparison, decision, ())), 120)]
    texts += [evaluation_page(evaluation, decision, []), comparison_page(comparison, decision, [])]
    for text in texts:
        assert text.count("99.9%") > 1
        assert "100% interval" not in text


def test_a_run_shows_the_model_then_the_comparison():
    evaluation = evaluated(random_predictions(60, 0), QUICK)
    assert "compared with" not in shown(render_run(EvaluationRun(evaluation, None, DECISION, ())))
    text = shown(render_run(EvaluationRun(evaluation, compare_evaluations(evaluation, evaluation), DECISION, ())))
    assert text.rstrip().endswith("Keep the baseline. Because. And so on.")
    assert "model.safetensors compared with model.safetensors" in " ".join(text.split())
