from itertools import product

import numpy as np
import pytest

from csi_job.evaluation.csi import predict_csi, risk_indices, true_csi
from csi_job.radiographs.zones import RISK_CLASSES, risk_class


def test_risk_probabilities_equal_the_sum_over_every_combination_of_scores():
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.7), size=(20, 6))
    predicted = predict_csi(probabilities)
    for image, scores in zip(probabilities, predicted.scores_NZ, strict=True):
        graded = np.flatnonzero(scores != 4)
        graded = graded if len(graded) else np.arange(6)
        given_graded = image[:, :4] / image[:, :4].sum(axis=1, keepdims=True)
        expected, mean = np.zeros(3), 0.0
        for combination in product(range(4), repeat=len(graded)):
            mass = np.prod([given_graded[zone, score] for zone, score in zip(graded, combination, strict=True)])
            csi = sum(combination) / len(graded)
            expected[RISK_CLASSES.index(risk_class(csi))] += mass
            mean += mass * csi
        index = np.flatnonzero((probabilities == image).all(axis=(1, 2)))[0]
        np.testing.assert_allclose(predicted.risk_NR[index], expected, atol=1e-12)
        assert predicted.csi_N[index] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("probabilities_NZK", "num_graded", "csi"),
    [
        (np.eye(5)[[[3, 3, 0, 0, 4, 4]]], 4, 1.5),
        (np.broadcast_to([0, 0, 0.1, 0, 0.9], (1, 6, 5)), 0, 2.0),  # none is graded, so that all six are used
        (np.eye(5)[np.full((1, 6), 4)], 0, 1.5),  # no probability of any score becomes uniform
    ],
)
def test_a_zone_predicted_unknown_is_left_out_of_the_csi(probabilities_NZK, num_graded, csi):
    predicted = predict_csi(probabilities_NZK)
    assert predicted.num_graded_N.tolist() == [num_graded]
    assert predicted.csi_N[0] == pytest.approx(csi)
    assert predicted.risk_NR.sum() == pytest.approx(1)


def test_the_true_csi_is_the_mean_over_graded_zones():
    csi = true_csi(np.array([[0, 1, 2, 3, 4, 4], [4] * 6, [3] * 6]))
    np.testing.assert_array_equal(csi, [1.5, np.nan, 3])


def test_risk_indices_agree_with_the_definition_at_every_possible_mean():
    means = sorted({total / zones for zones in range(1, 7) for total in range(3 * zones + 1)} | {1.3, 2.2, 11 / 5})
    assert [RISK_CLASSES[index] for index in risk_indices(np.array(means))] == [risk_class(mean) for mean in means]
