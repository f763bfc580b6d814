import json
import stat

import pytest

from csi_job.errors import CsiJobError
from csi_job.report.figures.plots import write_best_params, write_plots
from csi_job.report.study_view import view_study
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.work_folder import WorkFolder

REFERENCE = ("optimization_history", "param_importances", "parallel_coordinate")


def test_files_are_named_as_the_reference_names_them(finished_study, tmp_path):
    written = write_plots(view_study(finished_study), tmp_path / "models" / "hyperopt")
    assert [path.name for path in written] == [f"csi_optimization_{key}.html" for key in REFERENCE]
    assert sorted(path.parent.iterdir() for path in written[:1])
    assert {path.name for path in written[0].parent.iterdir()} == {path.name for path in written}  # nothing half-made
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o044 for path in written)  # others may read them


def test_two_objectives_have_a_front_as_well(two_objectives, tmp_path):
    assert write_plots(view_study(two_objectives), tmp_path)[-1].name == "costs_pareto_front.html"


def test_each_page_holds_plotly_once_and_loads_nothing(finished_study, tmp_path, read_page):
    for path in write_plots(view_study(finished_study), tmp_path):
        page = read_page(path)
        assert page.loads() == []
        assert sum("plotly.js v" in script for _, script in page.scripts) == 1
        assert len(page.figures()) == 1


def test_the_browser_is_told_to_load_nothing(finished_study, tmp_path, read_page):
    page = read_page(write_plots(view_study(finished_study), tmp_path)[0])
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'")
    assert "http" not in policies[0]


@pytest.mark.parametrize(
    "name", ["with space", "Étude d'été 北京", 'quo"te', "<img src=x onerror=alert(1)>", "{{ 7*7 }}&amp;"]
)
def test_any_study_name_is_safe_in_file_and_page(name, make_rich_study, tmp_path, read_page):
    for path in write_plots(view_study(make_rich_study(name, 12)), tmp_path):
        assert path.name.startswith(f"{name}_")
        page = read_page(path)
        assert name in page.text
        assert all(tag != "img" for tag, _ in page.tags)


def test_a_reason_with_markup_neither_ends_the_script_nor_becomes_markup(make_rich_study, tmp_path, read_page):
    study = make_rich_study("study", 12)
    trial = study.ask()
    trial.set_user_attr("reason", "</script><img src=x> \u2028 failed")
    study.tell(trial, state=trial.storage.get_trial(trial._trial_id).state.FAIL)
    page = read_page(write_plots(view_study(study), tmp_path)[0])
    assert all(tag != "img" for tag, _ in page.tags)
    texts = [text for trace in page.figures()[0]["data"] for text in trace.get("hovertext", [])]
    assert any("&lt;/script&gt;&lt;img src=x&gt;" in text for text in texts)


def test_degenerate_studies_write_pages_that_say_what_is_missing(degenerate_study, tmp_path, read_page):
    for path in write_plots(view_study(degenerate_study), tmp_path):
        page = read_page(path)
        if not page.figures():
            assert any(attrs.get("class") == "missing" for _, attrs in page.tags)
            assert page.scripts == []  # without a figure no plotly either


def test_best_params_are_a_whole_set_of_hyperparameters_with_their_origin(finished_study, tmp_path):
    path = write_best_params(view_study(finished_study), WorkFolder(tmp_path).best_params(finished_study.study_name))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "csi_optimization_best_params.json"
    assert content["trial"] == finished_study.best_trial.number
    assert content["value"] == finished_study.best_value
    assert Hyperparameters.from_params(content["params"]) == Hyperparameters.from_params(finished_study.best_params)
    assert content["max_epochs"] == finished_study.best_trial.user_attrs["max_epochs"]
    assert content["fingerprint"] == finished_study.user_attrs["fingerprint"]


def test_best_params_of_two_objectives_are_those_of_the_chosen_trial(two_objectives, tmp_path):
    path = write_best_params(view_study(two_objectives), tmp_path / "best.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    leader = max(two_objectives.best_trials, key=lambda trial: trial.values[0])
    limit = leader.values[0] - leader.user_attrs["f1_se"]
    as_good = [t for t in two_objectives.trials if t.values and t.values[0] >= limit]
    assert content["trial"] in {t.number for t in as_good}
    chosen = two_objectives.trials[content["trial"]]
    assert chosen.values[1] == min(trial.values[1] for trial in as_good)


def test_without_a_complete_trial_the_older_best_params_stay(degenerate_study, tmp_path):
    older = tmp_path / f"{degenerate_study.study_name}_best_params.json"
    older.write_text("older")
    if write_best_params(view_study(degenerate_study), older) is None:
        assert older.read_text() == "older"
    else:
        assert json.loads(older.read_text())["value"] is not None


def test_a_folder_that_cannot_be_made_is_one_line(finished_study, tmp_path):
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(CsiJobError, match="cannot be written") as raised:
        write_plots(view_study(finished_study), tmp_path / "models" / "hyperopt")
    assert "\n" not in str(raised.value)


def test_a_failed_write_leaves_the_old_file_and_nothing_half_made(finished_study, tmp_path):
    blocked = tmp_path / "csi_optimization_optimization_history.html"
    blocked.mkdir()
    with pytest.raises(CsiJobError):
        write_plots(view_study(finished_study), tmp_path)
    assert list(tmp_path.iterdir()) == [blocked]
