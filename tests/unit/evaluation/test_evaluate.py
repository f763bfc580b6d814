import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from csi_job.cache.dataset import Cache
from csi_job.evaluation.difference import paired_differences
from csi_job.evaluation.evaluate import confusion_ZKK, evaluate_model, risk_confusion_RR
from csi_job.evaluation.measures import SUMMARY_METRICS, Predictions
from csi_job.evaluation.model_file import load_model
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.zones import ZONES
from csi_job.trial.metrics import confusion, mean_f1, zone_rates
from tests.unit.evaluation.conftest import certain, evaluated, random_predictions


def test_f1_equals_the_objective_of_the_trials(quick):
    predictions = random_predictions(80, 0)
    counts = confusion(predictions.predicted.scores_NZ, predictions.zones_NZ)
    metrics = evaluated(predictions, quick).metrics
    assert metrics["f1_macro"].value == pytest.approx(mean_f1(counts, "macro"))
    assert metrics["f1_weighted"].value == pytest.approx(mean_f1(counts, "weighted"))
    assert [metrics[f"{zone}.f1_macro"].value for zone in ZONES] == pytest.approx(zone_rates(counts).f1)
    np.testing.assert_array_equal(confusion_ZKK(predictions), counts)
    for zone, zone_KK in enumerate(counts):
        truth, predicted = predictions.zones_NZ[:, zone], predictions.predicted.scores_NZ[:, zone]
        np.testing.assert_array_equal(zone_KK, confusion_matrix(truth, predicted, labels=range(5)))


def test_a_model_is_measured_on_a_split_of_a_cache(cache_folder, model_file, quick):
    data, loaded = Cache.open(cache_folder).split("test"), load_model(model_file, torch.device("cpu"))
    evaluation = evaluate_model(loaded, data, quick, split="test", cache="k")
    with torch.inference_mode():
        logits = loaded.model((data.images_NHW.float() / 255 - 0.5).div(0.5).unsqueeze(1))
    np.testing.assert_allclose(evaluation.predictions.probabilities_NZK, logits.softmax(2).numpy(), atol=1e-5)
    assert evaluation.to_json()["num_images"] == len(data)


def test_json_holds_every_metric_with_its_interval_only_valid_values_and_no_image(quick):
    predictions = random_predictions(60, 1)
    text = json.dumps(evaluated(predictions, quick).to_json(), allow_nan=False)
    assert not any(f'"{pseudonym}"' in text for pseudonym in predictions.pseudonyms)
    content = json.loads(text)
    assert set(content["metrics"]) == set(SUMMARY_METRICS)
    for metric in content["metrics"].values():
        low, high = metric["interval"]
        assert low <= high
    zone = content["zones"]["left_inf"]
    assert np.sum(zone["confusion"], axis=1)[:4].sum() == zone["num_graded"]
    assert sum(content["risk"]["num_true"].values()) == content["num_images_with_csi"]


def test_copies_of_an_image_add_no_certainty_if_they_belong_to_one_patient():
    settings, single = EvaluationSettings(num_bootstrap=1000), random_predictions(25, 2)
    rows = np.repeat(np.arange(25), 16)

    def width(patients):
        names = tuple(str(row) for row in range(len(rows)))
        copies = Predictions(single.probabilities_NZK[rows], single.zones_NZ[rows], patients, names)
        interval = evaluated(copies, settings).metrics["csi_mae"].interval
        return interval.high - interval.low

    assert width(rows) / width(np.arange(len(rows))) == pytest.approx(4, rel=0.25)


def test_undefined_metrics_are_null_with_their_reason(quick):
    content = evaluated(certain([[2, 2, 2, 2, 2, 4]] * 4), quick).to_json()
    assert content["metrics"]["risk_auroc"]["value"] is None
    assert content["metrics"]["risk_auroc"]["reason"] == "all images are of one risk class"
    assert content["metrics"]["risk_auroc_medium"]["reason"] == "all images are of medium risk"
    assert content["metrics"]["risk_auroc_low"]["reason"] == "no image is of low risk"
    assert "the same in all images" in content["metrics"]["csi_pearson_r"]["reason"]
    assert content["zones"]["left_inf"]["f1_macro"]["reason"] == "the zone is not graded in any image"
    assert content["metrics"]["f1_macro"]["value"] == 0.25
    json.dumps(content, allow_nan=False)


@pytest.mark.parametrize("zones", [np.full((4, 6), 4), np.empty((0, 6))])
def test_a_split_with_nothing_graded_or_no_images_is_all_null(zones, quick):
    content = evaluated(certain(zones), quick).to_json()
    assert all(metric["value"] is None and metric["reason"] for metric in content["metrics"].values())
    json.dumps(content, allow_nan=False)


def test_degenerate_resamples_are_reported(quick):
    predictions = certain([[0] * 6, *[[2] * 6] * 5])
    metric = evaluated(predictions, quick).to_json()["metrics"]["risk_auroc"]
    expected = 200 * (5 / 6) ** 6
    assert metric["value"] == 1
    assert metric["num_degenerate_resamples"] == pytest.approx(expected, abs=30)


@pytest.mark.parametrize(("num_low", "name", "num_behind"), [(2, "risk_auroc_low", 2), (5, "risk_accuracy", 7)])
def test_a_perfect_share_of_few_patients_has_the_exact_interval(quick, num_low, name, num_behind):
    zones = [[0] * 6] * num_low + [[3] * 6] * (7 - num_low)
    interval = evaluated(certain([*zones, zones[0]], patients=[*range(7), 0]), quick).metrics[name].interval
    exact = binomtest(num_behind, num_behind).proportion_ci(0.95, method="exact")
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))


def test_a_zone_that_is_graded_in_few_patients_has_their_interval(quick):
    graded, ungraded = [2, 0, 1, 2, 3, 0], [4, 4, 1, 2, 3, 0]
    ungraded_twice = [4, 0, 1, 2, 3, 0]
    predictions = certain([graded, ungraded_twice, ungraded_twice, *[ungraded] * 27])
    metrics = evaluated(predictions, quick).metrics
    assert metrics["left_sup.accuracy"].interval.low == pytest.approx(0.025 ** (1 / 3))
    assert metrics["left_mid.accuracy"].interval.low == pytest.approx(0.025 ** (1 / 30))
    assert metrics["right_sup.mae"].interval.reason == "measured on fewer than two patients"
    difference = paired_differences(predictions, predictions, quick)["right_sup.mae"]
    assert difference.interval.reason == "measured on fewer than two patients"


def test_a_value_that_all_resamples_agree_on_has_no_interval_of_no_width(quick):
    metrics = evaluated(certain([[0, 0, 1, 2, 3, 0]] * 20 + [[0, 1, 2, 3, 0, 1]] * 20), quick).metrics
    for name in ("right_sup.f1_macro", "right_sup.precision", "mae", "csi_rmse"):
        interval = metrics[name].interval
        assert (interval.low, interval.high, interval.reason) == (None, None, "the same in nearly every resample")
    assert metrics["right_sup.accuracy"].interval.low == pytest.approx(0.025 ** (1 / 40))


def test_an_auroc_that_rests_on_one_patient_has_no_interval(quick):
    truth = [[3] * 6, *[[0] * 6] * 12, *[[2] * 6] * 7]
    predictions = certain(truth, predicted=[[2] * 6, *[[0] * 6] * 12, *[[3] * 6] * 2, *[[2] * 6] * 5])
    metrics = evaluated(predictions, quick).metrics
    difference = paired_differences(predictions, predictions, quick)["risk_auroc_high"]
    for found in (metrics["risk_auroc_high"], metrics["risk_auroc"], difference):
        assert (found.interval.low, found.interval.reason) == (None, "measured on fewer than two patients")
    assert difference.share_better is None
    assert metrics["risk_auroc_medium"].interval.low < metrics["risk_auroc_medium"].value < 1


def test_risk_confusion_has_truth_in_rows():
    counts = risk_confusion_RR(certain([[0] * 6, [2] * 6, [3] * 6], predicted=[[0] * 6, [3] * 6, [3] * 6]))
    assert counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_scores_missing_from_a_zone_give_a_warning(quick, cache_folder, model_file):
    data = Cache.open(cache_folder).split("test")
    zones = data.zones_NZ.clone()
    zones[:, 0] = torch.where(zones[:, 0] == 3, 2, zones[:, 0])
    zones[:, 1] = 4
    changed = replace(data, zones_NZ=zones)
    loaded = load_model(model_file, torch.device("cpu"))
    warnings = evaluate_model(loaded, changed, quick, split="test", cache="", warnings=["first"]).to_json()["warnings"]
    assert warnings[0] == "first"
    assert any(sentence.startswith("right_sup has no image scored") and "3" in sentence for sentence in warnings)
    assert "left_sup is graded in no image; no metric counts it" in warnings
