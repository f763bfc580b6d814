import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    precision_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)

from csi_job.evaluation.csi import risk_indices, score_distributions
from csi_job.evaluation.measures import Predictions, calibration, measure, metric_name, weighted_auroc
from csi_job.radiographs.zones import RISK_CLASSES, ZONES
from tests.unit.evaluation.conftest import certain, random_predictions

SCIKIT = {"labels": [0, 1, 2, 3], "zero_division": 0}


def repeated(predictions: Predictions, counts: np.ndarray) -> Predictions:
    rows = np.repeat(np.arange(len(predictions)), counts)
    arrays = (predictions.probabilities_NZK, predictions.zones_NZ, predictions.patients_N)
    return Predictions(*(array[rows] for array in arrays), ())


def by_scikit_learn(predictions: Predictions) -> dict[str, float]:
    values: dict[str, float] = {}
    for index, zone in enumerate(ZONES):
        graded = predictions.zones_NZ[:, index] != 4
        truth = predictions.zones_NZ[graded, index]
        predicted = predictions.probabilities_NZK[graded, index].argmax(axis=1)
        values[f"{zone}.f1_macro"] = f1_score(truth, predicted, average="macro", **SCIKIT)
        values[f"{zone}.f1_weighted"] = f1_score(truth, predicted, average="weighted", **SCIKIT)
        values[f"{zone}.precision"] = precision_score(truth, predicted, average="macro", **SCIKIT)
        values[f"{zone}.recall"] = recall_score(truth, predicted, average="macro", **SCIKIT)
        values[f"{zone}.accuracy"] = accuracy_score(truth, predicted)
        given_graded = predictions.probabilities_NZK[graded, index, :4].argmax(axis=1)
        values[f"{zone}.mae"] = mean_absolute_error(truth, given_graded)
    for name in ("f1_macro", "f1_weighted", "accuracy", "mae"):
        values[name] = np.mean([values[f"{zone}.{name}"] for zone in ZONES])
    known = predictions.has_csi_N
    truth, predicted = predictions.csi_N[known], predictions.predicted.csi_N[known]
    values["csi_mae"] = mean_absolute_error(truth, predicted)
    values["csi_rmse"] = root_mean_squared_error(truth, predicted)
    values["csi_pearson_r"] = pearsonr(truth, predicted).statistic
    risk, probabilities = risk_indices(truth), predictions.predicted.risk_NR[known]
    values["risk_auroc"] = roc_auc_score(risk, probabilities, multi_class="ovr", average="macro")
    for index, name in enumerate(RISK_CLASSES):
        values[f"risk_auroc_{name}"] = roc_auc_score(risk == index, probabilities[:, index])
    values["risk_accuracy"] = accuracy_score(risk, risk_indices(predicted))
    return values


@pytest.mark.parametrize(("num_images", "seed", "unknown"), [(200, 0, 0.0), (60, 1, 0.2), (35, 2, 0.5)])
def test_every_metric_equals_scikit_learn(num_images, seed, unknown):
    predictions = random_predictions(num_images, seed, unknown=unknown)
    ours = measure(predictions, np.ones((1, num_images)))
    theirs = by_scikit_learn(predictions)
    assert set(ours) == set(theirs)
    assert (metric_name("left_inf.f1_macro"), metric_name("csi_mae")) == ("F1, left inf", "CSI: MAE")
    for name, value in theirs.items():
        assert ours[name][0] == pytest.approx(value, abs=1e-12), name


def test_weights_mean_the_same_as_repeating_the_images():
    predictions = random_predictions(80, 3)
    counts = np.random.default_rng(4).integers(0, 4, size=(3, 80))
    ours = measure(predictions, counts.astype(float))
    for row in range(3):
        for name, value in by_scikit_learn(repeated(predictions, counts[row])).items():
            assert ours[name][row] == pytest.approx(value, abs=1e-12), name


def test_auroc_counts_ties_half():
    positive = np.array([True, False, True, False, True])
    score = np.array([0.5, 0.5, 0.5, 0.1, 0.9])
    ours = weighted_auroc(positive, score, np.ones((1, 5)))[0]
    assert ours == pytest.approx(roc_auc_score(positive, score))


def test_auroc_averages_the_classes_that_occur():
    predictions = random_predictions(100, 6, unknown=0)
    without_high = repeated(predictions, (predictions.csi_N <= 2.2).astype(int))
    values = measure(without_high, np.ones((1, len(without_high))))
    assert np.isnan(values["risk_auroc_high"][0])
    assert values["risk_auroc"][0] == pytest.approx((values["risk_auroc_low"][0] + values["risk_auroc_medium"][0]) / 2)


def test_undefined_metrics_are_nan_under_the_weights_that_make_them_so():
    predictions = certain([[0] * 6, [3] * 6, [4] * 6])
    values = measure(predictions, np.array([[1.0, 1, 1], [2, 0, 1], [0, 0, 3]]))
    np.testing.assert_array_equal(np.isnan(values["risk_auroc"]), [False, True, True])
    np.testing.assert_array_equal(np.isnan(values["csi_pearson_r"]), [False, True, True])
    np.testing.assert_array_equal(np.isnan(values["csi_mae"]), [False, False, True])
    np.testing.assert_array_equal(np.isnan(values["f1_macro"]), [False, False, True])


def test_the_error_is_the_gap_between_confidence_and_accuracy():
    half_right = calibration(certain([[0] * 6, [1] * 6], predicted=[[0] * 6, [2] * 6]))
    assert half_right["expected_calibration_error"] == pytest.approx(0.5)
    assert half_right["bins"] == [{"low": 0.9, "high": 1.0, "num_zones": 12, "confidence": 1.0, "accuracy": 0.5}]
    assert calibration(certain(np.full((3, 6), 4))) == {"expected_calibration_error": None, "bins": []}


def test_the_bins_equal_scikit_learn():
    predictions = random_predictions(300, 7, unknown=0.2)
    graded = predictions.zones_NZ != 4
    given_graded = score_distributions(predictions.probabilities_NZK)[graded]
    correct = given_graded.argmax(axis=1) == predictions.zones_NZ[graded]
    accuracy, confidence = calibration_curve(correct, given_graded.max(axis=1), n_bins=10)
    bins = calibration(predictions)["bins"]
    np.testing.assert_allclose([entry["accuracy"] for entry in bins], accuracy, atol=1e-12)
    np.testing.assert_allclose([entry["confidence"] for entry in bins], confidence, atol=1e-12)
    assert sum(entry["num_zones"] for entry in bins) == graded.sum()
    assert all(entry["low"] <= entry["confidence"] <= entry["high"] for entry in bins)
