import numpy as np
import pytest

from csi_job.evaluation import bootstrap
from csi_job.evaluation.bootstrap import percentile_interval, resample_weights
from csi_job.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(num_bootstrap=300, seed=3)


def all_weights(patients, settings=SETTINGS) -> np.ndarray:
    return np.concatenate(list(resample_weights(np.asarray(patients), settings)))


def test_images_of_one_patient_are_resampled_together_and_patients_with_replacement():
    weights = all_weights([7, 7, 2, 9, 2, 7])
    assert weights.shape == (300, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 5])
    np.testing.assert_array_equal(weights[:, 2], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 2, 3]].sum(axis=1), 3)
    assert (weights == 0).any()
    assert (weights > 1).any()
    assert list(resample_weights(np.empty(0, dtype=int), SETTINGS)) == []


def test_the_weights_depend_on_the_seed_and_not_on_how_many_fit_into_memory(monkeypatch):
    expected = all_weights(range(10))
    assert not np.array_equal(all_weights(range(10), EvaluationSettings(seed=4)), expected)
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS", 70)
    np.testing.assert_array_equal(all_weights(range(10)), expected)
    assert max(len(chunk) for chunk in resample_weights(np.arange(10), SETTINGS)) == 7


def test_the_interval_of_a_mean_matches_theory():
    values = np.random.default_rng(0).normal(size=400)
    weights = all_weights(range(400), EvaluationSettings(num_bootstrap=2000))
    interval = percentile_interval(weights @ values / 400, 0.95, 400)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)


def test_degenerate_resamples_are_counted_and_left_out_and_where_most_are_there_is_no_interval():
    interval = percentile_interval(np.array([1.0, np.nan, 1.0, 1.0]), 0.95, 5)
    assert (interval.low, interval.high, interval.num_degenerate) == (1, 1, 1)
    json = percentile_interval(np.array([1.0, np.nan, np.nan]), 0.95, 5).to_json()
    assert json == {"interval": None, "num_degenerate_resamples": 2, "interval_reason": "undefined in 2 of 3 resamples"}
    assert percentile_interval(np.ones(100), 0.95, 1).reason == "measured on fewer than two patients"
