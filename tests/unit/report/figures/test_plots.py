import json
import stat

import plotly.graph_objects as go
import pytest

from csi_job.errors import CsiJobError
from csi_job.html.render import PLOTLY
from csi_job.report.figures.contour import contour_plot
from csi_job.report.figures.history import curves_plot, history_plot, losses_plot
from csi_job.report.figures.importances import importances_plot
from csi_job.report.figures.parameters import parallel_plot, slices_plot
from csi_job.report.figures.pareto import pareto_plot
from csi_job.report.figures.plots import write_best_params, write_plots
from csi_job.report.figures.timeline import timeline_plot
from csi_job.report.study_view import view_study
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.work_folder import WorkFolder
from tests.unit.report.conftest import read_page, rich_study

REFERENCE = ("optimization_history", "param_importances", "parallel_coordinate")


def test_files_have_the_names_of_the_reference(view, tmp_path):
    written = write_plots(view, tmp_path / "models" / "hyperopt")
    assert [path.name for path in written] == [f"csi_optimization_{key}.html" for key in REFERENCE]
    names = {path.name for path in written} | {PLOTLY}
    assert {path.name for path in written[0].parent.iterdir()} == names  # nothing half-made
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written)


def test_two_objectives_have_a_pareto_front_too(cost_view, tmp_path):
    assert write_plots(cost_view, tmp_path)[-1].name == "costs_pareto_front.html"


def test_the_pages_share_one_plotly_and_load_nothing_else(view, tmp_path):
    for path in write_plots(view, tmp_path):
        assert read_page(path).loads() == [PLOTLY]
        assert path.stat().st_size < 100_000
    assert "plotly.js (cartesian" in (tmp_path / PLOTLY).read_text()[:100]


def test_a_torn_plotly_is_written_again(view, tmp_path):
    (tmp_path / PLOTLY).write_text("torn")
    write_plots(view, tmp_path)
    assert (tmp_path / PLOTLY).stat().st_size > 1_000_000


def test_each_page_draws_its_plot_with_title_and_caption(view, cost_view, tmp_path):
    pages = [*write_plots(view, tmp_path), write_plots(cost_view, tmp_path)[-1]]
    plots = [history_plot(view), importances_plot(view), parallel_plot(view), pareto_plot(cost_view)]
    for path, plot in zip(pages, plots, strict=True):
        page = read_page(path)
        assert path.stem.endswith(plot.key)
        assert page.figures() == [json.loads(json.dumps(plot.figure))]
        assert plot.title in page.text
        assert plot.caption in page.text
        assert all(warning in page.text for warning in plot.warnings)


def test_the_content_security_policy_forbids_loading_anything(view, tmp_path):
    page = read_page(write_plots(view, tmp_path)[0])
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'")
    assert "http" not in policies[0]


@pytest.mark.parametrize(
    "name", ["with space", "Étude d'été 北京", 'quo"te', "<img src=x onerror=alert(1)>", "{{ 7*7 }}&amp;"]
)
def test_any_study_name_is_safe_in_file_and_page(name, tmp_path):
    for path in write_plots(view_study(rich_study(name, 12)), tmp_path):
        assert path.name.startswith(f"{name}_")
        page = read_page(path)
        assert name in page.text
        assert all(tag != "img" for tag, _ in page.tags)


def test_a_reason_with_markup_neither_ends_the_script_nor_becomes_markup(tmp_path):
    study = rich_study("study", 12)
    trial = study.ask()
    trial.set_user_attr("reason", "</script><img src=x> \u2028 failed")
    study.tell(trial, state=trial.storage.get_trial(trial._trial_id).state.FAIL)
    page = read_page(write_plots(view_study(study), tmp_path)[0])
    assert all(tag != "img" for tag, _ in page.tags)
    texts = [text for trace in page.figures()[0]["data"] for text in trace.get("hovertext", [])]
    assert any("&lt;/script&gt;&lt;img src=x&gt;" in text for text in texts)


DRAW = (curves_plot, history_plot, losses_plot, parallel_plot, pareto_plot, slices_plot, timeline_plot)
NEVER = (contour_plot, importances_plot)  # these need several trials that differ


@pytest.mark.parametrize("draw", [*DRAW, *NEVER])
def test_degenerate_studies_give_a_figure_or_a_reason(draw, degenerate_view):
    plot = draw(degenerate_view)
    assert bool(plot.figure) != plot.missing.endswith(".")
    assert plot.figure is None or draw not in NEVER
    go.Figure(plot.figure)


def test_degenerate_studies_give_figures_or_say_why_there_is_none(degenerate_view, tmp_path):
    for path in write_plots(degenerate_view, tmp_path):
        page = read_page(path)
        has_reason = any(attrs.get("class") == "missing" for _, attrs in page.tags)
        assert has_reason != bool(page.figures())
        if has_reason:
            assert page.scripts == []  # without a figure no plotly either


def test_best_params_are_a_complete_set_of_hyperparameters_with_their_origin(finished_study, view, tmp_path):
    path = write_best_params(view, WorkFolder(tmp_path).best_params(finished_study.study_name))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "csi_optimization_best_params.json"
    assert content["trial"] == finished_study.best_trial.number
    assert content["value"] == finished_study.best_value
    assert Hyperparameters.from_params(content["params"]) == Hyperparameters.from_params(finished_study.best_params)
    assert content["max_epochs"] == finished_study.best_trial.user_attrs["max_epochs"]
    assert content["fingerprint"] == finished_study.user_attrs["fingerprint"]


def test_best_params_of_two_objectives_are_those_of_the_chosen_trial(two_objectives, cost_view, tmp_path):
    path = write_best_params(cost_view, tmp_path / "best.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    leader = max(two_objectives.best_trials, key=lambda trial: trial.values[0])
    limit = leader.values[0] - leader.user_attrs["f1_se"]
    as_good = [t for t in two_objectives.trials if t.values and t.values[0] >= limit]
    assert content["trial"] in {t.number for t in as_good}
    chosen = two_objectives.trials[content["trial"]]
    assert chosen.values[1] == min(trial.values[1] for trial in as_good)


def test_without_a_complete_trial_the_older_best_params_stay(degenerate_study, degenerate_view, tmp_path):
    older = tmp_path / f"{degenerate_study.study_name}_best_params.json"
    older.write_text("older")
    if write_best_params(degenerate_view, older) is None:
        assert older.read_text() == "older"
    else:
        assert json.loads(older.read_text())["value"] is not None


def test_a_folder_that_cannot_be_created_is_a_one_line_error(view, tmp_path):
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(CsiJobError, match="cannot be written"):
        write_plots(view, tmp_path / "models" / "hyperopt")
