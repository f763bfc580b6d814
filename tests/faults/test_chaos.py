"""All faults at once in small studies; `make faults` runs the same at full size."""

import pytest

from tests.faults.harness.chaos import Dose, chaos
from tests.faults.harness.training import phantom_cache, run_training


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_kills_cuts_crashes_and_stops_leave_an_exact_study(mortal, tmp_path, pruner):
    dose = Dose(
        trials=60, workers=6, kills=30, cuts=40, crashes=3, stops=2, terminations=3, down_s=2.0, sampler="tpe",
        pruner=pruner, max_epochs=2 if pruner == "median" else 5,
    )  # fmt: skip
    with mortal.database() as url:
        figures = chaos(mortal, url, tmp_path, dose, seed=3)
    assert figures.complaints == []
    assert (figures.finished, figures.stuck, figures.lost) == (60, 0, 0)
    assert figures.acknowledged >= 100
    assert figures.kills >= 20
    assert 0 < figures.kills_at_points < figures.kills
    assert figures.cuts >= 40
    assert figures.withheld >= 5
    assert (figures.crashes, figures.stops) == (3, 2)


def test_real_training_under_faults_leaves_an_exact_study(mortal, tmp_path):
    dose = Dose(
        trials=5, workers=2, max_epochs=3, kills=4, cuts=4, crashes=1, stops=0, terminations=1, pruner="none",
        run=run_training, cache=phantom_cache(tmp_path),
    )  # fmt: skip
    with mortal.database() as url:
        figures = chaos(mortal, url, tmp_path / "study", dose, seed=4)
    assert figures.complaints == []
    assert (figures.finished, figures.stuck, figures.lost) == (5, 0, 0)
    assert figures.acknowledged >= 5 * 3
    assert figures.kills >= 2


def test_black_holed_connections_are_ended_by_keepalives(mortal, tmp_path):
    """The proxy would hold them for an hour, so the study finishes only if the workers notice."""
    silence = {"tcp_user_timeout": "2000", "keepalives_idle": "1", "keepalives_interval": "1", "keepalives_count": "2"}
    dose = Dose(
        trials=60, workers=4, epoch_s=0.1, kills=0, cuts=0, holes=3, crashes=0, stops=0, terminations=0, hole_s=3600.0,
        holes_in_transactions=False, connection=silence,
    )  # fmt: skip
    with mortal.database() as url:
        # With this seed the holes are due at 39 to 52 % of the study.
        figures = chaos(mortal, url, tmp_path, dose, seed=10)
    assert figures.complaints == []
    assert figures.holes == 3
    assert figures.finished == 60
