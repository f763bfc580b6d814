import pytest

from csi_job.trial.schedule import LR_DECAY_FACTOR, EpochResult, Schedule


def results(f1: list[float], loss: list[float] | None = None) -> list[EpochResult]:
    losses = loss or [1.0] * len(f1)
    return [EpochResult(i, 1.0, losses[i], f1[i], 0.1, 1.0, 1.0) for i in range(len(f1))]


def test_training_stops_when_patience_runs_out():
    schedule = Schedule(0.1, 3)
    stops = []
    for result in results([0.1, 0.3, 0.2, 0.3, 0.1]):
        schedule.update(result)
        stops.append(schedule.should_stop)
    assert stops == [False, False, False, False, True]
    assert (schedule.best_epoch, schedule.best_val_f1) == (1, 0.3)  # the first of equals
    assert Schedule(0.1, 5, results([0.0, 0.0])).best_epoch == 0


def test_an_improvement_resets_the_patience():
    assert not Schedule(0.1, 2, results([0.1, 0.0, 0.2, 0.1])).should_stop
    assert Schedule(0.1, 2, results([0.1, 0.0, 0.2, 0.1, 0.2])).should_stop
    assert not Schedule(0.1, 1).should_stop


def test_the_rate_drops_after_half_the_patience_without_progress_in_f1_or_loss():
    still = [0.5] * 5
    assert Schedule(0.1, 8, results(still[:4])).learning_rate == 0.1
    assert Schedule(0.1, 8, results(still)).learning_rate == pytest.approx(0.1 * LR_DECAY_FACTOR)
    assert Schedule(0.1, 8, results(still, loss=[5, 4, 3, 2, 1])).learning_rate == 0.1
    assert Schedule(0.1, 8, results([0.5] * 9)).learning_rate == pytest.approx(0.1 * LR_DECAY_FACTOR**2)


def test_the_rate_warms_up_over_the_first_epoch_only():
    schedule = Schedule(0.1, 5)
    assert [schedule.step_rate(0, step, 4) for step in range(4)] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert schedule.step_rate(1, 0, 4) == 0.1


def test_replaying_results_gives_the_same_schedule():
    history = results([0.1, 0.4, 0.3, 0.3, 0.35, 0.2, 0.2])
    fed = Schedule(0.1, 6)
    for result in history:
        fed.update(result)
    assert vars(Schedule(0.1, 6, history)) == vars(fed)
