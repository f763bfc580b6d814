from datetime import datetime, timedelta

import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState, create_trial

from csi_job.report.figures.timeline import timeline_plot
from csi_job.report.page.sections_search import cost
from csi_job.report.study_view import view_study
from tests.support.studies import define
from tests.unit.report.figures.test_history import with_weight

START = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - as Optuna stores it


def view_of(*trials):
    """A study of complete trials: (start, end) in minutes and worker."""
    study = optuna.create_study(direction="maximize")
    for start, end, worker in trials:
        trial = create_trial(state=TrialState.COMPLETE, value=0.5, user_attrs={"worker": worker} if worker else {})
        trial.datetime_start, trial.datetime_complete = (START + timedelta(minutes=at) for at in (start, end))
        study.add_trial(trial)
    return view_study(study)


def test_each_trial_is_a_bar_of_its_length_in_the_row_of_its_worker():
    plot = timeline_plot(view_of((0, 3, "a:1"), (1, 2, "b:1"), (4, 4.5, "a:1")))
    [bars] = go.Figure(plot.figure).data
    assert list(bars.y) == ["a:1", "b:1", "a:1"]
    assert list(bars.x) == [180_000, 60_000, 30_000]
    assert bars.base[1] == "2026-01-01T12:01:00.000"


def test_trials_of_unknown_workers_do_not_hide_each_other():
    plot = timeline_plot(view_of((0, 3, ""), (1, 2, ""), (3, 4, ""), (2, 4, "")))
    assert plot.figure["data"][0]["y"] == ["unknown 1", "unknown 2", "unknown 1", "unknown 2"]


def test_a_trial_that_was_paused_has_a_bar_for_each_time_it_ran():
    start_s = START.timestamp()
    runs = [(start_s, start_s + 60, "a:1"), (start_s + 600, start_s + 720, "b:1")]
    study = optuna.create_study(direction="maximize")
    trial = create_trial(state=TrialState.PRUNED, user_attrs={"runs": runs, "worker": "b:1"})
    trial.datetime_start, trial.datetime_complete = START, START + timedelta(hours=9)
    study.add_trial(trial)
    view = view_study(study)
    [bars] = timeline_plot(view).figure["data"]
    assert (bars["y"], bars["x"]) == (["a:1", "b:1"], [60_000, 120_000])
    assert bars["base"] == ["2026-01-01T12:00:00.000", "2026-01-01T12:10:00.000"]
    assert view.trials[0].seconds == 180


def test_every_outcome_is_drawn(view):
    drawn = sum(len(trace.y) for trace in go.Figure(timeline_plot(view).figure).data)
    assert drawn == len([trial for trial in view.trials if trial.outcome != "waiting"])


def test_a_trial_outside_the_space_counts_in_no_time_and_no_speed(storage):
    study = define(storage)
    for weight, minutes in ((5.0, 40), (0.5, 3)):
        trial = with_weight(weight, value=0.5, user_attrs={"worker": "a:1", "epochs": minutes, "gflops": 1.0})
        trial.datetime_start, trial.datetime_complete = START, START + timedelta(minutes=minutes)
        study.add_trial(trial)
        view = view_study(study)
        if weight == 5.0:
            assert timeline_plot(view).missing == "No trial within the search space has started yet."
            assert cost(view).paragraphs == ("No trial within the search space has ended yet.",)
    [bars] = timeline_plot(view).figure["data"]
    assert bars["x"] == [180_000]
    costs = cost(view)
    assert "All trials together took 3 min" in costs.paragraphs[0]
    assert "3 epochs" in costs.paragraphs[0]
    assert costs.blocks[0].rows[0][:2] == ("Complete", "1")
