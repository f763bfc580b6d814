from statistics import median_low

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

from csi_job.evaluation.trivial import compare_with_trivial, constant_scores
from csi_job.radiographs.zones import ZONES
from tests.unit.evaluation.conftest import certain, random_predictions


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
