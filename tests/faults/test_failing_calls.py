"""Any one write, flush or rename of a command may fail: it says so in one line, and run again it does its work."""

import random

import pytest

from tests.faults.harness.failing_calls import CASES, Prepared, fail_each, preloaded

NUM_FAILED = 2
"""Calls of each command; `make faults FAULTS_ARGS="--only calls"` fails all of them."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with preloaded():
        yield Prepared(tmp_path_factory.mktemp("calls"))


@pytest.mark.parametrize("name", CASES)
def test_a_failed_call_loses_nothing(prepared, name):
    assert [*fail_each(prepared, CASES[name], random.Random(name), NUM_FAILED)] == []
