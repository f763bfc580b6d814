"""How the validation F1 varies with the two most important hyperparameters together."""

from optuna.distributions import CategoricalDistribution

from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, Figure, Plot, axis_title, layout
from csi_job.report.figures.style import BEST_MARKER, markers, spread_sample
from csi_job.report.study_view import StudyView, TrialView

MAX_TRIALS = 80  # the grid between them grows with the square
CLEAR_TO_BLUE = [[0, "rgba(59,130,196,0.05)"], [1, BLUE]]


def contour_plot(view: StudyView) -> Plot:
    """Show the F1 over the two most important hyperparameters that are numbers."""
    key, title = "contour", "The two most important settings together"
    names = [
        name for name in view.importances.shares if not isinstance(view.distributions[name], CategoricalDistribution)
    ][:2]
    trials = [trial for trial in view.ranked if len(names) > 1 and all(name in trial.params for name in names)]
    if len(trials) < 2:  # noqa: PLR2004 - two points make a line
        return Plot(
            key, title, missing="Two rated hyperparameters that are numbers are needed, and trials that use both."
        )
    sampled = spread_sample(trials, MAX_TRIALS)
    caption = (
        f"{fmt.parameter_name(names[0])} and {fmt.parameter_name(names[1]).lower()}: markers are complete trials, the "
        "star is the best of them; bluer means a higher F1. Between trials the colour is interpolated, not measured."
    )
    return Plot(key, title, caption, _contour(view, sampled, names))


def _contour(view: StudyView, trials: list[TrialView], names: list[str]) -> Figure:
    points = {(trial.params[names[0]], trial.params[names[1]]): trial.f1 for trial in reversed(trials)}  # best last
    xs, ys = (sorted({point[index] for point in points}) for index in range(2))
    surface = {
        "type": "contour",
        "x": xs,
        "y": ys,
        "z": [[points.get((x, y)) for x in xs] for y in ys],
        "connectgaps": True,
        "colorscale": CLEAR_TO_BLUE,
        "colorbar": {"title": {"text": "F1"}, "thickness": 12, "outlinewidth": 0},
        "contours": {"coloring": "heatmap"},  # filled levels lie on one another, so that their colours add up
        "line": {"smoothing": 0.8, "width": 0.6},
        "hoverinfo": "skip",
    }
    shown = [("Trial", trials[1:], {"color": "#22303c", "size": 7, "line": {"width": 1, "color": "#ffffff"}})]
    shown.append(("Best of these", trials[:1], BEST_MARKER))
    traces = [
        markers(group, *([trial.params[name] for trial in group] for name in names), marker=marker, name=label)
        for label, group, marker in shown
    ]
    figure = layout("", "", height_px=480)
    for axis, name in zip(("xaxis", "yaxis"), names, strict=True):
        figure[axis] |= {"title": axis_title(fmt.parameter_name(name)), "showgrid": False}
        figure[axis] |= {"type": "log", "dtick": 1, "exponentformat": "power"} if view.is_log(name) else {}
    return {"data": [surface, *traces], "layout": figure}
