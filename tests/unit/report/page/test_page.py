import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import yaml
from optuna.trial import TrialState

from csi_job.evaluation.decision import MIN_PATIENTS, decide, patients_needed, round_up
from csi_job.html import format as fmt
from csi_job.html.format import MINUS
from csi_job.report.page.page import refresh_results, write_report
from csi_job.report.page.sections_result import best_settings
from csi_job.report.results import Results
from csi_job.report.study_view import view_study
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import WorkFolder
from tests.unit.report.conftest import PSEUDONYMS, random_study, read_page, rich_study
from tests.unit.report.page.conftest import change_json, report

FEW = MIN_PATIENTS - 1


def test_the_report_opens_with_no_network_and_holds_plotly_once(work, view):
    path = write_report(view, work)
    assert path == work / "models" / "hyperopt" / "csi_optimization_report.html"
    page = read_page(path)
    assert page.loads() == []
    assert sum("plotly.js (cartesian" in script for _, script in page.scripts) == 1
    assert path.stat().st_size < 2_000_000
    assert len(page.figures()) == 11


def test_links_lead_to_sections_and_ids_are_unique(work, view):
    page = report(view, work)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs["href"].startswith("#")]
    assert links
    assert all(link.removeprefix("#") in ids for link in links)


def test_the_report_links_to_the_other_pages_of_its_model_only(work, view):
    pages = ("evaluation/optimized_model_plots.html", "evaluation/comparison_plots.html", "optimized_model.html")
    for path in pages:
        (work / "models" / path).touch()
    links = {attrs["href"] for tag, attrs in report(view, work).tags if tag == "a" and attrs["href"][0] != "#"}
    assert links == {f"../{path}" for path in pages}
    change_json(work / "models" / "optimized_model.json", study="another")
    assert not [attrs for tag, attrs in report(view, work).tags if tag == "a" and attrs["href"][0] != "#"]


def test_the_largest_sentence_is_about_patients_never_seen_and_says_what_to_do(work, view):
    folder = work / "models" / "evaluation"
    evaluation, baseline, comparison = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("optimized_model", "baseline_model", "comparison")
    )
    decision = decide(evaluation, comparison, baseline, 97)
    page = report(view, work)
    assert page.text.index(f"{decision.action}. {decision.evidence}") < page.text.index("The search tried")
    assert f"{comparison['metrics']['f1_macro']['difference']:+.3f} (95% interval" in decision.evidence


def test_trivial_predictors_stand_beside_every_metric(work, text):
    evaluation = json.loads((work / "models" / "evaluation" / "optimized_model.json").read_text())
    assert "Always commonest Always median Difference Verdict" in text
    for name in ("mae", "csi_mae", "risk_auroc"):
        commonest, median = (
            f"{evaluation['trivial'][who]['metrics'][name]['baseline']:.3f}" for who in ("commonest", "median")
        )
        assert f") {commonest} {median} " in text
    zone = [evaluation["trivial"][who]["zones"]["left_inf"]["mae"]["baseline"] for who in ("commonest", "median")]
    assert " ".join(f"{value:.3f}" for value in zone) in text


def test_an_evaluation_by_an_older_version_is_still_shown(work, view):
    for path in (work / "models").rglob("*.json"):
        content = json.loads(path.read_text())
        content.pop("trivial", None)
        for part in (content, content.get("test") or {}):
            for name in ("mae", "accuracy"):
                part.get("metrics", {}).pop(name, None)
        path.write_text(json.dumps(content))
    text = report(view, work).text
    assert "Test F1 vs. baseline" in text
    assert "Always median" not in text


def test_the_search_comes_second_with_best_trial_baseline_and_data(finished_study, text):
    best, baseline = finished_study.best_value, finished_study.trials[0].value
    sentence = f"validation F1 of {best:.3f}, {best - baseline:.3f} above the baseline ({baseline:.3f})"
    assert sentence in text
    assert "127 radiographs from 97 patients" in text
    assert re.search(r"hyperparameters, trained on \d+ radiographs and compared on \d+\.", text)
    assert text.index(sentence) < text.index("Best settings")


def test_how_many_patients_are_needed_in_all_counts_those_of_the_data_trained_on(work, view):
    path = work / "models" / "evaluation" / "comparison.json"
    metrics = json.loads(path.read_text())["metrics"]
    metrics["f1_macro"] |= {"difference": 0.05, "interval": [-0.05, 0.15], "outcome": "unclear"}
    change_json(path, metrics=metrics)
    num_patients = json.loads((work / "models" / "evaluation" / "optimized_model.json").read_text())["num_patients"]
    needed = patients_needed(0.05, -0.05, num_patients, 0.95)
    card = json.loads((work / "models" / "optimized_model.json").read_text())
    in_all = round_up(needed * sum(card["data"]["num_patients"].values()) / num_patients)
    assert f"about {fmt.count(needed)} in the test set ({fmt.count(in_all)} in all" in report(view, work).text


def test_candidates_are_shown_with_mean_and_std(work, view, text):
    confirmed = json.loads((work / "models" / "hyperopt" / "csi_optimization_optimized_params.json").read_text())
    assert f"mean validation F1 of {confirmed['value']:.3f} (SD {confirmed['std']:.3f})" in text
    assert f"Trial {confirmed['trial']}, winner" in text
    baseline = json.loads((work / "models" / "baseline_model.json").read_text())
    assert f"the baseline, retrained the same way, reached {baseline['mean']:.3f}" in text
    change_json(work / "models" / "hyperopt" / "csi_optimization_optimized_params.json", trial=0)
    own = report(view, work).text
    assert "Trial 0, the baseline itself, retrained with" in own
    assert "retrained the same way" not in own


def test_test_metrics_are_those_of_the_evaluation_with_their_intervals(work, text):
    evaluation = json.loads((work / "models" / "evaluation" / "optimized_model.json").read_text())
    comparison = json.loads((work / "models" / "evaluation" / "comparison.json").read_text())
    for name in ("f1_macro", "csi_mae", "risk_auroc"):
        metric = evaluation["metrics"][name]
        low, high = metric["interval"]
        assert f"{metric['value']:.3f} ({low:.3f} to {high:.3f})" in text
    assert f"{comparison['metrics']['csi_mae']['difference']:+.3f}".replace("-", MINUS) in text
    assert "left_sup has no image scored 3; the macro F1 counts that as 0." in text


def test_before_the_later_stages_the_page_says_what_is_still_to_do(view, tmp_path):
    text = report(view, tmp_path).text
    assert "has not been evaluated on the test set yet: run csi-job train-optimized and csi-job evaluate." in text
    assert "csi-job train-optimized retrains the best trials" in text
    assert "is not in this work folder" in text
    assert "the best of many is partly luck" in text


def test_a_model_of_a_deleted_study_of_the_same_name_is_not_shown_as_this_ones(work, view, text):
    created_again = replace(view, attributes=view.attributes | {"uid": "now"})
    assert report(created_again, work).text == text  # version 0.1 did not store whose a model is
    for path in (work / "models" / "optimized_model.json", WorkFolder(work).optimized_params(view.name)):
        change_json(path, study_uid="before")
    text = report(created_again, work).text
    assert "belongs to a deleted study of the same name" in text
    assert "has not been evaluated on the test set yet" in text
    assert "csi-job train-optimized retrains the best trials" in text


def test_a_model_of_hyperparameters_written_by_hand_is_not_shown_as_the_winner(work, view):
    for path in (work / "models" / "optimized_model.json", WorkFolder(work).optimized_params(view.name)):
        change_json(path, trial=None)
    text = report(view, work).text
    assert "has hyperparameters that are not of this search, and is not shown" in text
    assert "has not been evaluated on the test set yet" in text


def test_a_study_shows_its_own_model_whichever_was_trained_last(work, view, text):
    shutil.copytree(work / "models", work / "own", ignore=shutil.ignore_patterns("hyperopt"))
    change_json(work / "models" / "optimized_model.json", study="another")
    change_json(work / "models" / "evaluation" / "optimized_model.json", metrics={})
    (work / "models" / "final").mkdir()
    (work / "own").rename(work / "models" / "final" / view.name)
    own = f"models/final/{view.name}"
    moved = text
    for name in ("optimized_model", "baseline_model"):
        moved = moved.replace(f"models/{name}.safetensors", f"{own}/{name}.safetensors")
    assert moved != text
    assert report(view, work).text == moved
    change_json(work / "models" / "final" / view.name / "baseline_model.json", request="another")
    assert "retrained the same way" not in report(view, work).text


@pytest.mark.parametrize(
    ("stem", "changes", "shown", "not_shown"),
    [
        ("optimized_model", {"study": "another <study>"}, "belongs to another study (another <study>)", "Test F1"),
        ("optimized_model", {"study": "another"}, "has not been evaluated on the test set yet", "Test F1"),
        ("optimized_model", {"test": None}, "is of another model or split", "Test F1"),
        (
            "evaluation/optimized_model",
            {"num_patients": FEW},
            f"With only {FEW} test patients, the intervals",
            "Not checked yet",
        ),
        ("evaluation/optimized_model", {"num_patients": FEW + 1}, "Test F1", "intervals are too narrow"),
    ],
    ids=["another study", "not evaluated", "another evaluation", "few patients", "enough patients"],
)
def test_what_is_shown_of_the_final_model_follows_from_its_files(stem, changes, shown, not_shown, work, view):
    change_json(work / "models" / f"{stem}.json", **changes)
    text = report(view, work).text
    assert shown in text
    assert not_shown not in text


def test_a_comparison_with_another_model_is_not_shown_as_the_baselines(work, view):
    path = work / "models" / "evaluation" / "baseline_model.json"
    metrics = json.loads(path.read_text())["metrics"]
    metrics["f1_macro"]["value"] += 0.01
    change_json(path, metrics=metrics)
    text = report(view, work).text
    assert "Test F1" in text
    assert "Test F1 vs. baseline" not in text


@pytest.mark.parametrize(
    ("stem", "shown", "not_shown"),
    [
        ("optimized_model", "No final model has been trained for this study yet", "optimized_model.safetensors"),
        ("optimized_model", "has not been evaluated on the test set yet", "Test F1"),
        ("baseline_model", "optimized_model.safetensors", "baseline_model.safetensors"),
        ("baseline_model", "Retrained, mean F1", "retrained the same way"),
        ("evaluation/optimized_model", "has not been evaluated on the test set yet", "Test F1"),
        ("evaluation/baseline_model", "Test F1", "Test F1 vs. baseline"),
        ("evaluation/comparison", "Test F1", "Verdict"),
        ("hyperopt/csi_optimization_optimized_params", "Not checked yet", "winner"),
    ],
)
@pytest.mark.parametrize("content", ["", "[1]", '{"format": 99}', '{"torn": '])
def test_damaged_files_of_other_stages_are_left_out(stem, shown, not_shown, content, work, view, text):
    assert not_shown in text
    (work / "models" / f"{stem}.json").write_text(content)
    damaged = report(view, work).text
    assert shown in damaged
    assert not_shown not in damaged


def test_models_trained_on_more_data_than_the_search_are_shown_with_evaluations_of_that_data_only(work, view):
    study = rich_study()
    study.set_user_attr("fingerprint", {**study.user_attrs["fingerprint"], "cache": "f" * 16})
    text = report(view_study(study), work).text
    assert "radiographs from" not in text  # of a cache that is not there
    assert "winner" in text
    assert "Test F1" in text
    for path in ("evaluation/optimized_model.json", "hyperopt/csi_optimization_optimized_params.json"):
        change_json(work / "models" / path, cache="e" * 16)
    text = report(view, work).text
    assert "winner" not in text
    assert "Test F1" not in text


def test_the_settings_of_a_baseline_that_is_not_complete_are_shown_too():
    study = random_study(0)
    trial = study.ask()
    params = SearchSpace().suggest(trial).to_params()
    trial.set_user_attr("baseline", True)
    study.tell(trial, state=TrialState.PRUNED)
    (table,) = best_settings(view_study(study), Results()).blocks
    place = table.columns.index("Baseline")
    (rate,) = [row[place] for row in table.rows if row[0] == fmt.parameter_name("learning_rate")]
    assert rate == fmt.value(params["learning_rate"])


def test_infeasible_and_failed_trials_are_listed_with_their_reasons_and_those_from_elsewhere(finished_study, text):
    reasons = {trial.user_attrs["reason"] for trial in finished_study.trials if trial.user_attrs.get("infeasible")}
    assert reasons
    assert all(reason in text for reason in reasons)
    assert "the worker stopped 3 times before the end of an epoch 2 9, 26" in text
    assert "The commands do not repeat 1 trial enqueued by hand." in text


def test_trials_computed_in_smaller_pieces_are_named(finished_study, text):
    trials = finished_study.trials
    split = [trial for trial in trials if trial.user_attrs.get("micro_batch", 999) < trial.params.get("batch_size", 0)]
    assert 0 < len(split) < len(trials)
    assert f"Memory ran out in {len(split)} trials (" in text
    assert all(trial.params["batch_size"] == 128 for trial in split)


def test_every_trial_is_in_a_table_that_can_be_sorted(finished_study, work, view):
    page = report(view, work)
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "table"].count("sortable") == 1
    script = next(data for _, data in page.scripts if "table.sortable" in data)
    assert "aria-sort" in script
    text = page.text[page.text.index("Click a column's name") :]
    for trial in (finished_study.trials[3], finished_study.trials[20]):
        assert f" {trial.number} {view.trials[trial.number].outcome} " in text


def test_the_settings_shown_make_the_same_study_again(work, finished_study, view):
    codes = [data for data in report(view, work).words if "space:" in data]
    settings = yaml.safe_load(codes[0])
    fingerprint = finished_study.user_attrs["fingerprint"]
    assert SearchSpace(**settings["space"]).fingerprint() == fingerprint["space"]
    assert settings["trial"]["objective_average"] == fingerprint["average"]
    assert settings["baseline"] == asdict(Hyperparameters.from_params(finished_study.trials[0].params))
    first = finished_study.trials[0].user_attrs
    assert settings["study"]["max_epochs"] == first["max_epochs"]
    assert settings["study"]["sampler"] == first["sampler"]
    assert settings["study"]["num_trials"] < view.num_finished


def test_the_commands_shown_repeat_each_phase_and_end_at_the_total(work):
    study = rich_study("it's a study", 40)
    text = next(data for data in report(view_study(study), work).words if "csi-job hyperopt" in data)
    commands = [shlex.split(part) for part in text.replace("\\\n", " ").splitlines()]
    options = [dict(zip(words[2::2], words[3::2], strict=True)) for words in commands]
    assert [option.get("--sampler") for option in options] == [None, "tpe"]
    assert [option.get("--max-epochs") for option in options] == [None, "12"]
    assert options[-1]["--n-trials"] == str(view_study(study).num_finished)
    assert options[0]["--config"] == "it's a study_settings.yaml"


def test_two_objectives_show_the_rule_and_the_front(cost_view, tmp_path):
    page = report(cost_view, tmp_path)
    assert "one standard error" in page.text
    assert any(attrs.get("id") == "figure-pareto_front" for _, attrs in page.tags)


def test_degenerate_studies_give_a_page(degenerate_view, tmp_path):
    page = report(degenerate_view, tmp_path)
    assert page.loads() == []
    complete = degenerate_view.with_outcome("complete")
    assert ("No trial is complete yet, so there is no result" in page.text) == (not complete)


def test_neither_pseudonyms_nor_paths_are_on_the_page(work, view):
    text = write_report(view, work).read_text(encoding="utf-8")
    assert str(work) not in text
    assert set(PSEUDONYMS) & set(re.findall(r"\b[0-9a-f]{12}\b", text)) == set()


def test_one_process_refreshes_the_report_at_most_once_a_minute(tmp_path, finished_study, monkeypatch):
    now, written = [1e9], []

    def write(*_):
        written.append(page)
        page.touch()
        os.utime(page, (now[0], now[0]))

    folder = WorkFolder(tmp_path)
    page = folder.report(finished_study.study_name)
    monkeypatch.setattr("csi_job.report.page.page.write_results", write)
    monkeypatch.setattr("csi_job.report.page.page.time", SimpleNamespace(time=lambda: now[0]))
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda _: refresh_results(finished_study, folder), range(8)))
    assert len(written) == 1
    for age_s, times in ((59, 1), (61, 2), (-59, 2), (-61, 3)):  # also if the server of the folder has another clock
        now[0] = page.stat().st_mtime + age_s
        refresh_results(finished_study, folder)
        assert len(written) == times, age_s


def test_a_report_that_another_process_writes_is_left_to_it_while_it_lives(tmp_path, finished_study):
    folder = WorkFolder(tmp_path)
    page = folder.report(finished_study.study_name)
    page.parent.mkdir(parents=True)
    script = "import sys, pathlib, csi_job.files as f\nwith f.locked_if_free(pathlib.Path(sys.argv[1])):"
    script += " print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(page.with_name(f".{page.stem}.lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        refresh_results(finished_study, folder)
        assert not page.exists()
        writer.kill()
    refresh_results(finished_study, folder)
    assert page.exists()
