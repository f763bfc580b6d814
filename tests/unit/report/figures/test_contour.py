import optuna
import plotly.graph_objects as go

from csi_job.report.figures.contour import contour_plot
from csi_job.report.study_view import view_study


def test_the_two_most_important_numbers_are_drawn_with_each_trial_at_its_f1(view):
    plot = contour_plot(view)
    surface, *_ = go.Figure(plot.figure).data
    names = [name for name in view.importances.shares if name not in {"model_arch", "optimizer", "batch_size"}][:2]
    trials = [trial for trial in view.ranked if all(name in trial.params for name in names)]
    assert sum(z is not None for row in surface.z for z in row) == len(trials)
    best = trials[0]
    row = list(surface.y).index(best.params[names[1]])
    assert surface.z[row][list(surface.x).index(best.params[names[0]])] == best.f1
    assert surface.contours.coloring == "heatmap"  # with "fill", transparent colours add up to one blue


def test_of_trials_at_one_place_the_best_is_drawn():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(12):
        if number % 3:
            study.enqueue_trial({"unknown_weight": 0.5, "learning_rate": 0.25})
        trial = study.ask()
        f1 = trial.suggest_float("unknown_weight", 0, 1) + trial.suggest_float("learning_rate", 0, 1)
        study.tell(trial, f1 / 10 + number / 100)
    surface, *_ = contour_plot(view_study(study)).figure["data"]
    x, y = (0.5, 0.25) if 0.5 in surface["x"] else (0.25, 0.5)
    assert surface["z"][surface["y"].index(y)][surface["x"].index(x)] == 0.075 + 11 / 100
