import plotly.graph_objects as go

from csi_job.report.figures.losses import losses_plot


def test_both_losses_of_every_trial_are_drawn_by_epoch(view):
    traces = {trace.name: trace for trace in go.Figure(losses_plot(view).figure).data}
    assert {f"{name}, {which}" for name in ("Others", "Baseline") for which in ("training", "validation")} <= set(
        traces
    )
    num_trials = sum(list(trace.x).count(None) for name, trace in traces.items() if name.endswith("validation"))
    assert num_trials == len([trial for trial in view.trials if trial.losses])
    baseline = traces["Baseline, training"]
    assert list(baseline.x)[:2] == [1, 2]
    assert list(baseline.y)[:2] == [2, 1]
    assert baseline.line.dash == "dot"


def test_a_study_without_stored_losses_says_so(degenerate_view):
    plot = losses_plot(degenerate_view)
    assert plot.figure is not None or "older version" in plot.missing
