"""Fingerprints differ by their dotted keys."""

from __future__ import annotations

import json

import pytest

from csi_job.errors import ConfigurationError
from csi_job.study.definition import Fingerprint, check_same
from csi_job.trial.space import SearchSpace

PRINT = Fingerprint({"x": {"low": 0, "high": 1}}, "f1", "macro", "abc")


def test_the_same_fingerprint_passes_after_a_trip_through_json() -> None:
    PRINT.check(json.loads(json.dumps(PRINT.to_json())), "toy")
    real = Fingerprint(SearchSpace().fingerprint(), "f1", "macro", "abc")
    real.check(json.loads(json.dumps(real.to_json())), "toy")


def test_a_narrower_real_space_is_named_by_its_bound() -> None:
    stored = Fingerprint(SearchSpace().fingerprint(), "f1", "macro", "abc").to_json()
    space = SearchSpace.model_validate({"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}})
    with pytest.raises(ConfigurationError, match=r"space\.learning_rate\.low \(was 1e-05, now 0\.0001\);"):
        Fingerprint(space.fingerprint(), "f1", "macro", "abc").check(stored, "toy")


def test_what_is_missing_on_either_side_differs() -> None:
    with pytest.raises(ConfigurationError, match=r"a \(was 1, now absent\), b\.c \(was absent, now 2\)"):
        check_same({"a": 1}, {"b": {"c": 2}}, "toy")


def test_many_differences_are_counted() -> None:
    with pytest.raises(ConfigurationError, match=r"and 5 more"):
        check_same({str(i): 1 for i in range(15)}, {str(i): 2 for i in range(15)}, "toy")
