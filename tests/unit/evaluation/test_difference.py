import json
from statistics import median_low

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

from csi_job.errors import DataError
from csi_job.evaluation.difference import compare_with_trivial, constant_scores
from csi_job.evaluation.evaluate import Evaluation, compare_evaluations
from csi_job.evaluation.measures import Predictions
from csi_job.radiographs.zones import ZONES
from tests.unit.evaluation.conftest import certain, evaluated, random_predictions


def blurred(predictions: Predictions, share: float) -> Predictions:
    """The same images, less sure of every class."""
    probabilities = (1 - share) * predictions.probabilities_NZK + share * 0.2
    return Predictions(probabilities, predictions.zones_NZ, predictions.patients_N, predictions.pseudonyms)


def test_a_model_compared_with_itself_shows_no_difference(quick):
    model = evaluated(random_predictions(50, 0), quick)
    comparison = compare_evaluations(model, model)
    for difference in comparison.differences.values():
        assert difference.difference == 0
        assert (difference.interval.low, difference.interval.high) == (0, 0)
        assert difference.share_better == 0


def test_a_clearly_better_model_is_better_and_the_reverse_is_worse(quick):
    truth = random_predictions(60, 1, unknown=0)
    good, poor = evaluated(certain(truth.zones_NZ, truth.patients_N), quick), evaluated(truth, quick)
    names = tuple(str(index) for index in range(len(truth)))  # as `certain` has them
    renamed = Predictions(truth.probabilities_NZK, truth.zones_NZ, truth.patients_N, names)
    poor = Evaluation(**{**vars(poor), "predictions": renamed})
    forward, backward = compare_evaluations(good, poor), compare_evaluations(poor, good)
    assert forward.differences["f1_macro"].verdict == "better"
    assert forward.differences["csi_mae"].verdict == "better"
    assert forward.differences["csi_mae"].difference < 0
    assert forward.differences["csi_mae"].share_better == 1
    assert backward.differences["csi_mae"].verdict == "worse"


def test_paired_resamples_narrow_the_interval_of_a_constant_difference(quick):
    predictions = random_predictions(80, 2, unknown=0)
    model, shifted = evaluated(predictions, quick), evaluated(blurred(predictions, 0.3), quick)
    paired = compare_evaluations(shifted, model).differences["csi_mae"].interval
    alone = model.metrics["csi_mae"].interval
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


def test_the_paired_interval_equals_a_loop_over_the_same_patients(quick):
    model = evaluated(random_predictions(40, 3, num_patients=25), quick)
    baseline = evaluated(blurred(model.predictions, 0.5), quick)
    difference = compare_evaluations(model, baseline).differences["csi_mae"]
    generator, patients = np.random.default_rng(quick.seed), np.unique(model.predictions.patients_N)
    errors = [np.abs(e.predictions.predicted.csi_N - e.predictions.csi_N) for e in (model, baseline)]
    gaps = []
    for _ in range(quick.num_bootstrap):
        drawn = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)))
        weights = drawn[np.searchsorted(patients, model.predictions.patients_N)] * model.predictions.has_csi_N
        first, second = (np.average(np.nan_to_num(error), weights=weights) for error in errors)
        gaps.append(first - second)
    expected = np.quantile(gaps, [0.025, 0.975])
    assert [difference.interval.low, difference.interval.high] == pytest.approx(expected, abs=1e-12)
    assert difference.share_better == np.mean(np.array(gaps) < 0)


def test_json_stays_valid_where_metrics_are_undefined(quick):
    model = evaluated(certain(np.full((4, 6), 2)), quick)
    content = json.loads(json.dumps(compare_evaluations(model, model).to_json(), allow_nan=False))
    auroc = content["metrics"]["risk_auroc"]
    assert auroc["outcome"] == "undefined"
    assert auroc["difference"] is None
    assert auroc["interval_reason"] == "all images are of one risk class"


def test_one_patient_is_too_few_to_compare(quick):
    one = evaluated(certain([[1] * 6, [2] * 6], patients=[0, 0]), quick)
    headline = compare_evaluations(one, one).differences["f1_macro"]
    assert (headline.verdict, headline.interval.reason) == ("undefined", "measured on fewer than two patients")


def test_a_difference_that_all_resamples_agree_on_is_not_certain(quick):
    truth = [[0] * 6] * 30
    found = compare_evaluations(
        evaluated(certain(truth), quick), evaluated(certain(truth, predicted=[[1] * 6] * 30), quick)
    ).differences
    assert (found["f1_macro"].difference, found["f1_macro"].verdict) == (0.25, "undefined")
    assert found["f1_macro"].interval.reason == "the same in nearly every resample"
    same = compare_evaluations(*[evaluated(certain(truth), quick)] * 2).differences["f1_macro"]
    assert (same.interval.low, same.interval.high) == (0, 0)


def test_models_evaluated_on_different_images_are_rejected(quick):
    first, second = evaluated(random_predictions(30, 4), quick), evaluated(random_predictions(30, 5), quick)
    with pytest.raises(DataError, match="different images"):
        compare_evaluations(first, second)


@pytest.mark.parametrize("seed", range(5))
def test_the_constant_scores_are_those_of_scikit_learn_and_statistics(seed):
    train_NZ = random_predictions(41 + seed, seed, unknown=0.3).zones_NZ
    scores = constant_scores(train_NZ)
    for index in range(len(ZONES)):
        graded = train_NZ[train_NZ[:, index] != 4, index]
        dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(graded), 1)), graded)
        assert scores["commonest"][index] == dummy.predict([[0]])[0]
        assert scores["median"][index] == median_low(graded.tolist())


def test_the_trivial_metrics_are_scikit_learns_on_the_same_films(quick):
    train_NZ, predictions = random_predictions(70, 1).zones_NZ, random_predictions(50, 2)
    compared = compare_with_trivial(predictions, train_NZ, quick)
    for name, scores_Z in constant_scores(train_NZ).items():
        of_zones = {"f1_macro": [], "accuracy": [], "mae": []}
        for index, zone in enumerate(ZONES):
            truth = predictions.zones_NZ[predictions.zones_NZ[:, index] != 4, index]
            constant = np.full(len(truth), scores_Z[index])
            f1 = f1_score(truth, constant, labels=[0, 1, 2, 3], average="macro", zero_division=0)
            values = {"f1_macro": f1, "accuracy": accuracy_score(truth, constant)}
            for metric, value in {**values, "mae": mean_absolute_error(truth, constant)}.items():
                of_zones[metric].append(value)
                assert compared[name]["zones"][zone][metric]["baseline"] == pytest.approx(value)
        for metric, values in of_zones.items():
            assert compared[name]["metrics"][metric]["baseline"] == pytest.approx(np.mean(values))
        graded_NZ = np.where(predictions.zones_NZ == 4, np.nan, predictions.zones_NZ.astype(float))
        csi_N = np.nanmean(graded_NZ[predictions.has_csi_N], axis=1)
        error = mean_absolute_error(csi_N, np.full(len(csi_N), scores_Z.mean()))
        assert compared[name]["metrics"]["csi_mae"]["baseline"] == pytest.approx(error)
        assert compared[name]["metrics"]["risk_auroc"]["baseline"] == 0.5


def test_a_model_that_answers_the_median_is_no_better_than_the_median(quick):
    truth = random_predictions(40, 3, unknown=0).zones_NZ
    answers = np.broadcast_to(constant_scores(truth)["median"], truth.shape)
    compared = compare_with_trivial(certain(truth, predicted=answers), truth, quick)["median"]["metrics"]
    assert {entry["difference"] for entry in compared.values()} <= {0, None}
