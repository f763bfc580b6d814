from __future__ import annotations

import numpy as np
import pytest

from csi_job.evaluation.measures import calibration
from tests.unit.evaluation.conftest import certain, draw_predictions


def test_bins_hold_every_graded_zone_once():
    predictions = draw_predictions(100, 0, unknown=0.3)
    bins = calibration(predictions)["bins"]
    assert sum(entry["num_zones"] for entry in bins) == (predictions.zones_NZ != 4).sum()
    assert all(entry["low"] <= entry["confidence"] <= entry["high"] for entry in bins)


def test_the_error_is_the_gap_between_confidence_and_accuracy():
    half_right = calibration(certain([[0] * 6, [1] * 6], said=[[0] * 6, [2] * 6]))
    assert half_right["expected_calibration_error"] == pytest.approx(0.5)
    assert half_right["bins"] == [{"low": 0.9, "high": 1.0, "num_zones": 12, "confidence": 1.0, "accuracy": 0.5}]


def test_nothing_graded_has_no_calibration():
    assert calibration(certain(np.full((3, 6), 4))) == {"expected_calibration_error": None, "bins": []}
