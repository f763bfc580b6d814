"""The commands as users run them, on phantoms, in a folder with spaces and umlauts."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess

import pytest

from csi_job.cli import cli
from csi_job.errors import ConfigurationError
from tests.support.processes import Command, cold_command, preload, wait_until
from tests.support.reader import copy_work

preload("tests.support.warm")

SETTINGS = """
cache: {image_size_px: 32}
trial: {class_balance: true, augment: {enabled: false}}
space: {model_arch: {value: Custom_1}, batch_size: {choices: [16, 32]}}
baseline: {model_arch: Custom_1, learning_rate: 2.0e-3}
study: {max_epochs: 2}
evaluation: {num_bootstrap: 100}
"""
BEST = "csi_optimization_best_params.json"
OF_SEARCH = "JOIN studies USING (study_id) WHERE study_name NOT LIKE '%/confirmation' ORDER BY number"
OF_TRIALS = f"JOIN trials USING (trial_id) {OF_SEARCH}"
TRIALS = f"SELECT number, state FROM trials {OF_SEARCH}"
REPEATED = (
    TRIALS,
    f"SELECT number, param_name, param_value, distribution_json FROM trial_params {OF_TRIALS}, param_name",
    f"SELECT number, value FROM trial_values {OF_TRIALS}",
    f"SELECT number, step, intermediate_value FROM trial_intermediate_values {OF_TRIALS}, step",
    "SELECT key, value_json FROM study_user_attributes WHERE key IN ('fingerprint', 'settings', 'seed') ORDER BY key",
)
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def start(work, *arguments, is_cold=False):
    """Start a command, with the small settings until there is a study, which then knows them.

    A cold one runs in a new interpreter, as a shell starts it.
    """
    given = [*map(str, arguments), "--work", str(work)]
    if not (work / "studies.db").exists():
        settings = work.parent / "settings.yaml"
        settings.write_text(SETTINGS)
        given += ["--config", str(settings)]
    environment = {**os.environ, **ENVIRONMENT}
    return cold_command(*given, env=environment) if is_cold else Command(*given, environment=environment)


def run(work, *arguments, code=0):
    """Run a command to its end and return what it printed."""
    process = start(work, *arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def data(phantoms):
    return ("--labels", str(phantoms / "labels.csv"), "--images", str(phantoms / "images"))


def trials(work):
    with sqlite3.connect(work / "studies.db") as database:
        return database.execute(TRIALS).fetchall()


def steps(work):
    query = "SELECT number, step FROM trial_intermediate_values JOIN trials USING (trial_id) ORDER BY number, step"
    found = {}
    with (
        sqlite3.connect(work / "studies.db") as database,
        contextlib.suppress(sqlite3.OperationalError),
    ):  # no tables yet
        for number, step in database.execute(query):
            found.setdefault(number, []).append(step)
    return found


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """A work folder after the search of three trials and the final model."""
    work = tmp_path_factory.mktemp("work") / "Röntgen bilder"
    run(work, "hyperopt", *data(phantoms), "--n-trials", 3, "--pruner", "none", "--max-epochs-total", 100)
    best = work / "models/hyperopt" / BEST
    run(work, "train-optimized", "--hyperparams", best, "--candidates", 2, "--seeds", 2)
    return work


def test_the_search_writes_the_documented_files(finished):
    names = {path.name for path in (finished / "models/hyperopt").iterdir()}
    plots = {"optimization_history.html", "param_importances.html", "parallel_coordinate.html", "report.html"}
    assert {f"csi_optimization_{name}" for name in (*plots, "best_params.json", "optimized_params.json")} <= names
    best = json.loads((finished / "models/hyperopt" / BEST).read_text())
    assert best["params"]["model_arch"] == "Custom_1"
    assert 0 <= best["value"] <= 1


def test_rerunning_a_finished_search_trains_nothing_and_says_how_to_continue(finished, tmp_path):
    before = trials(finished)
    out, err = run(finished, "hyperopt", "--n-trials", 3)
    assert trials(finished) == before
    assert "is complete (3 trials)" in err
    assert "--more-trials" in out
    report = finished / "models/hyperopt/csi_optimization_report.html"
    written = report.stat().st_mtime_ns
    assert "plots and report: " in out
    out, err = run(finished, "hyperopt", "--n-trials", 3, "--no-report", "--sampler", "auto", "--pruner", "auto")
    assert "sampler tpe_per_cost, pruner none" in err
    assert "plots and report: " not in out
    assert report.stat().st_mtime_ns == written
    assert "give one of them" in run(finished, "hyperopt", "--n-trials", 3, "--more-trials", 1, code=2)[1]
    (limits := tmp_path / "limits.yaml").write_text("study: {num_trials: 3, max_epochs_total: 100}")
    for name, number, epochs in (("max-epochs-total", 90, 90), ("n-trials", 3, 90), ("max-epochs-total", 100, 100)):
        _, err = run(finished, "hyperopt", "--no-report", "--config", limits, f"--{name}", number)
        assert ("lowering the total" in err) is (number == 90)
        assert f"study.max_epochs_total: {epochs} " in run(finished, "config", "show", "--study", "csi_optimization")[0]


def test_the_final_model_is_trained_as_the_study_was_and_compared_with_its_baseline(finished):
    cards = [json.loads((finished / f"models/{name}_model.json").read_text()) for name in ("baseline", "optimized")]
    assert (cards[0]["params"]["learning_rate"], cards[0]["architecture"]) == (2e-3, "Custom_1")
    for card in cards:
        assert (card["training"]["class_balance"], card["training"]["augment"]["enabled"]) == (True, False)


def test_the_settings_beside_the_report_repeat_the_study_bit_by_bit(finished, phantoms, tmp_path):
    settings, again = finished / "models/hyperopt/csi_optimization_settings.yaml", tmp_path / "again"
    given = ("hyperopt", *data(phantoms), "--config", str(settings), "--work", str(again))
    process = Command(*given, environment=os.environ | ENVIRONMENT)
    _, err = process.communicate()
    assert process.returncode == 0, err
    for sql in REPEATED:
        with sqlite3.connect(finished / "studies.db") as one, sqlite3.connect(again / "studies.db") as two:
            assert (rows := one.execute(sql).fetchall())
            assert two.execute(sql).fetchall() == rows
    best = [json.loads((work / f"models/hyperopt/{BEST}").read_text()) for work in (finished, again)]
    own = {"created": "", "study_uid": ""}
    assert best[0] | own == best[1] | own


def test_another_way_of_training_is_refused_in_one_line(finished):
    settings = finished.parent / "other_training.yaml"
    settings.write_text("trial: {class_balance: false}")
    best = finished / "models/hyperopt" / BEST
    for command in (["hyperopt"], ["study", "create"], ["train-optimized", "--hyperparams", best]):
        _, err = run(finished, *command, "--config", settings, code=2)
        assert "trial.class_balance (was true, now false); restore them, or choose another study name" in err
        assert len(err.strip().splitlines()) == 1


def test_config_show_names_what_comes_from_the_study(finished):
    for flag in ("--study", "--study-name"):
        lines = run(finished, "config", "show", flag, "csi_optimization", "--max-epochs", 7)[0].splitlines()
        shown = dict(re.split(r" +# ", line) for line in lines)
        assert shown["trial.class_balance: true"] == shown["baseline.learning_rate: 0.002"] == "study"
        assert shown["study.max_epochs: 7"] == "flag --max-epochs"
        assert shown["trial.device: auto"] == "default"
    assert "study.name: none " in run(finished, "config", "show", "--study-name", "none")[0]
    assert "no study of this name" in run(finished, "config", "show", "--study", "none", code=2)[1]


def test_rerunning_the_final_model_trains_nothing(finished):
    model = finished / "models/optimized_model.safetensors"
    before = model.stat().st_mtime_ns
    out, _ = run(finished, "train-optimized", "--candidates", 2, "--seeds", 2)  # by default with the search's result
    assert model.stat().st_mtime_ns == before
    assert "nothing was trained" in out


def test_evaluation_compares_with_the_stored_baseline_and_reaches_the_report(finished):
    out, _ = run(finished, "evaluate", "--model-path", finished / "models/optimized_model.pth")
    assert "baseline_model" in out
    run(finished, "eval")
    evaluation = json.loads((finished / "models/evaluation/optimized_model.json").read_text())
    metric = evaluation["metrics"]["f1_macro"]
    low, high = metric["interval"]
    assert 0 <= low <= metric["value"] <= high <= 1
    card = json.loads((finished / "models/optimized_model.json").read_text())
    assert card["test"]["metrics"]["f1_macro"]["value"] == pytest.approx(metric["value"])
    report = (finished / "models/hyperopt/csi_optimization_report.html").read_text()
    assert f"{metric['value']:.3f}" in report


@pytest.fixture(scope="module")
def namesake(phantoms, tmp_path_factory):
    """The uid and the URL of another study named as the finished one, in another database."""
    work = tmp_path_factory.mktemp("namesake") / "work"
    run(work, "study", "create", *data(phantoms))
    claimed = json.loads((work / "models/hyperopt/.csi_optimization.json").read_text())
    return claimed["study_uid"], f"sqlite:///{work}/studies.db"


@pytest.mark.parametrize(
    "command",
    [
        *("hyperopt", "study create", "report", "train-optimized"),
        "train-optimized models/hyperopt/csi_optimization_optimized_params.json",
    ],
)
def test_a_namesake_in_another_database_is_refused_before_it_replaces_results(finished, namesake, tmp_path, command):
    uid, url = namesake
    given = command.split()
    if command in ("hyperopt", "study create"):
        url = f"sqlite:///{tmp_path}/new.db"
    elif command == "train-optimized":
        best = json.loads((finished / "models/hyperopt" / BEST).read_text())
        (tmp_path / BEST).write_text(json.dumps(best | {"study_uid": uid}))
        given += ["--hyperparams", tmp_path / BEST]
    elif command.startswith("train-optimized"):
        given[1:] = ["--hyperparams", finished / given[1]]
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("models/**/*")}
    _, err = run(finished, *given, "--storage", url, code=2)
    assert "another study of this name, which is in another database, got 'csi_optimization'" in err
    assert "choose another study.name or work folder" in err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("models/**/*")} == files
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize(
    ("says_whose", "reason"),
    [(True, "the model is of another study of this name"), (False, "has the results of another study of this name")],
)
def test_a_model_is_evaluated_although_the_database_has_a_namesake(finished, namesake, tmp_path, says_whose, reason):
    work = copy_work(finished, tmp_path / "work")
    if not says_whose:  # as in version 0.1
        for path in work.glob("models/**/*_model.json"):
            if "study_uid" in (card := json.loads(path.read_text())):
                path.write_text(json.dumps(card | {"study_uid": None}))
    report = work / "models/hyperopt/csi_optimization_report.html"
    before = report.read_bytes()
    for command in ("evaluate", "eval"):
        out, err = run(work, command, "--storage", namesake[1])
        assert "macro F1" in out
        assert "the report of study csi_optimization is not updated" in err
        assert reason in err
    assert report.read_bytes() == before


def test_a_state_dict_without_a_card_is_evaluated_as_the_named_architecture(finished, phantoms, tmp_path):
    bare = tmp_path / "bare.pth"
    shutil.copy(finished / "models/optimized_model.pth", bare)
    _, err = run(finished, "evaluate", "--model-path", bare, code=2)
    assert "--model-arch" in err
    out, _ = run(finished, "evaluate", "--model-path", bare, "--model-arch", "Custom_1", "--baseline", bare)
    assert "bare.json" in out
    film = next(iter(sorted((phantoms / "images").iterdir())))
    form = ["--model-arch", "Custom_1", "--image-size", 32, "--normalisation", "medical"]
    bare_scores, _ = run(finished, "predict", film, "--model-path", bare, *form)
    assert bare_scores == run(finished, "predict", film)[0]


def test_predict_reports_a_corrupt_file_and_continues(finished, phantoms, tmp_path):
    good = sorted((phantoms / "images").iterdir())[:3]
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    out, err = run(finished, "predict", *good, torn, code=1)
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 4
    assert [bool(row["problem"]) for row in rows] == [False, False, False, True]
    assert all(0 <= float(row["right_inf_p_unknown"]) <= 1 for row in rows[:3])
    assert "torn.png" in err
    run(finished, "predict", *good, torn, "--output", tmp_path / "scores.csv", code=1)
    assert (tmp_path / "scores.csv").read_text() == out
    assert stat.S_IMODE((tmp_path / "scores.csv").stat().st_mode) == 0o600
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    run(finished, "predict", *good, torn, "--output", tmp_path / "loop.csv", code=1)
    assert (tmp_path / "loop.csv").read_text() == out
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    run(finished, "predict", *good, torn, "--output", tmp_path / "pipe", code=1)
    assert reader.communicate(timeout=240)[0] == out
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_study_commands(finished):
    out, _ = run(finished, "status", "--json")
    assert json.loads(out)["num_finished"] == 3
    assert "3 of 3 trials" in run(finished, "study", "list")[0]
    assert "learning_rate" in run(finished, "study", "show", "csi_optimization")[0]
    _, err = run(finished, "study", "enqueue", "csi_optimization", "learning_rate=0.001", code=2)
    assert "--raise-total" in err
    assert len(run(finished, "report")[0].splitlines()) >= 5


def test_a_deleted_study_is_gone(phantoms, tmp_path, monkeypatch):
    work = tmp_path / "work"
    run(work, "study", "create", *data(phantoms))
    assert [state for _, state in trials(work)] == ["WAITING"]
    run(work, "study", "create", *data(phantoms))
    assert len(trials(work)) == 1
    assert "--yes" in run(work, "study", "delete", "csi_optimization", code=2)[1]
    monkeypatch.setattr("sys.stdin", None)  # closed, as by `<&-`
    with pytest.raises(ConfigurationError, match="nobody can confirm"):
        cli.main(["study", "delete", "csi_optimization", "--work", str(work)], standalone_mode=False)
    leader, terminal = os.openpty()
    os.write(leader, b"n\n")
    with os.fdopen(leader), os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert cli.main(["study", "delete", "csi_optimization", "--work", str(work)], standalone_mode=False) == 1
    assert len(trials(work)) == 1
    run(work, "study", "delete", "csi_optimization", "--yes")
    assert trials(work) == []
    _, err = run(work, "study", "show", "csi_optimization", code=2)
    assert "no study of this name" in err
    assert "is intact" in run(work, "cache", "verify")[0]


def test_two_processes_share_a_study_exactly(phantoms, tmp_path):
    work = tmp_path / "work"
    processes = [start(work, "hyperopt", *data(phantoms), "--n-trials", 5) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    found = trials(work)
    assert [number for number, _ in found] == list(range(5))
    assert {state for _, state in found} <= {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_search_resumes(phantoms, tmp_path, number, code):
    work = tmp_path / "work"
    search = ("hyperopt", *data(phantoms), "--n-trials", 2, "--max-epochs", 30, "--pruner", "none")
    process = start(work, *search, is_cold=number is signal.SIGINT)
    wait_for_epochs(process, work, 0)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    num_done = len(steps(work)[0])
    _, err = run(work, "hyperopt", "--n-trials", 2, "--max-epochs", 3, "--pruner", "none")
    assert [state for _, state in trials(work)] == ["COMPLETE", "COMPLETE"]
    curve = steps(work)[0]
    assert curve == list(range(len(curve)))
    assert len(curve) >= num_done
    assert re.search(r"trial 0 resumes at epoch", err)


def wait_for_epochs(process, work, *numbers):
    """Wait until each of these trials has finished an epoch."""

    def are_running():
        assert process.poll() is None, process.communicate()
        found = steps(work) if (work / "studies.db").exists() else {}
        return all(found.get(number) for number in numbers)

    wait_until(are_running, 240)


def test_a_killed_worker_is_replaced_and_a_signal_reaches_all(phantoms, tmp_path):
    work = tmp_path / "work"
    search = ("hyperopt", *data(phantoms), "--n-trials", 2, "--max-epochs", 200, "--pruner", "none", "--workers", 2)
    process = start(work, *search)
    wait_for_epochs(process, work, 0, 1)
    with sqlite3.connect(work / "studies.db") as database:
        query = "SELECT value_json FROM trial_user_attributes WHERE key = 'worker'"
        workers = {int(name.strip('"').rpartition(":")[2]) for (name,) in database.execute(query)}
    assert len(workers) == 2
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: "attempt 2" in process.log(), 240)  # long before the lease expires
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert re.search(r"worker [12]: killed, perhaps because memory ran out; restarting it", err)
    assert len(re.findall(r"worker [12]: trial [01] released; the next worker resumes it", err)) == 2
    assert err.splitlines()[-1] == "csi-job: stopped by Ctrl-C; run the same command again to resume"


def test_images_too_small_for_an_architecture_are_rejected_before_the_search(phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("CSI_JOB_SPACE__MODEL_ARCH", '{"choices": ["Custom_1", "alexnet"]}')
    work = tmp_path / "work"
    _, err = run(work, "hyperopt", *data(phantoms), code=2)
    assert "images of 32 px are too small for alexnet" in err
    assert len(err.strip().splitlines()) == 1
    assert not (work / "studies.db").exists()


def test_the_python_call_continues_the_study_as_it_is_and_optuna_itself_reads_it(finished, monkeypatch, caplog):
    import optuna

    from csi_job import optimize_hyperparameters

    small = {"cache": {"image_size_px": 32}, "space": {"model_arch": {"value": "Custom_1"}}}
    small["space"]["batch_size"] = {"choices": [16, 32]}
    study = optimize_hyperparameters(
        n_trials=3, max_epochs=2, work=finished, baseline={"model_arch": "Custom_1", "learning_rate": 2e-3}, **small
    )
    caplog.set_level("INFO")
    caplog.clear()
    monkeypatch.setenv("CSI_JOB_STUDY__SAMPLER", "random")
    optimize_hyperparameters(work=finished)
    assert "sampler random, pruner none" in caplog.text  # the variable's and the study's
    assert study.user_attrs["target"] == 3
    same = optuna.load_study(study_name="csi_optimization", storage=f"sqlite:///{finished}/studies.db")
    assert same.best_value == study.best_value
    assert same.best_params == study.best_params
