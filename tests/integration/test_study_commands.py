"""Copy, export and migration as a user runs them: real processes, real phantoms, both databases."""

import contextlib
import csv
import json
import math
import os
import shlex
import sqlite3
from collections import Counter

import optuna
import psycopg2
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState, create_trial

from csi_job.cli import cli
from csi_job.storage import attributes as stored
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.transfer.copy import write_study_rows
from tests.integration.test_commands import ENVIRONMENT, data, run, trials
from tests.support.carrying import simple_study
from tests.support.postgres import guarded_server
from tests.support.processes import Command
from tests.support.reader import Reader, StudyReader, copy_work

pytestmark = pytest.mark.timeout(900)  # the first test of the module waits for a search
COMPLETE = TrialState.COMPLETE
OUTCOMES = (stored.INFEASIBLE, stored.CANCELLED, stored.REJECTED, stored.BASELINE)
OF_TRIALS = (
    *(
        *OUTCOMES,
        *stored.PHASE,
        stored.ATTEMPT,
        stored.EPOCHS,
        stored.PAUSED,
        stored.RUNS,
        stored.BRACKET,
        stored.CURVE,
    ),
    *(stored.LOSSES, stored.WORKER, stored.GFLOPS, stored.IMAGES_PER_S, stored.BEST_EPOCH, stored.NUM_PARAMETERS),
    *(stored.MICRO_BATCH, stored.F1_SE, stored.OLD_F1_SE, stored.REASON, stored.MIGRATED_FROM),
)
PASSWORD = "{s3cret-%}@/: #"  # begins as a YAML mapping does


@pytest.fixture(scope="module")
def searched(phantoms, tmp_path_factory):
    """A work folder after a search of two trials."""
    work = tmp_path_factory.mktemp("work") / "Röntgen bilder"
    run(work, "hyperopt", *data(phantoms), "--n-trials", 2, "--max-epochs", 1, "--image-size", 32)
    return work


def one_line(err):
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("csi-job: ")
    return err


def test_an_export_is_two_files_that_are_not_overwritten_without_force(searched):
    folder = searched / "models/hyperopt"
    out, _ = run(searched, "study", "export", "csi_optimization")
    table, tree = folder / "csi_optimization_trials.csv", folder / "csi_optimization_trials.json"
    assert str(table) in out
    rows = [*csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines())]
    assert [row["outcome"] for row in rows] == ["complete", "complete"]
    assert rows[0]["params_model_arch"] == "Custom_1"
    assert rows[0]["is_baseline"] == "true"
    entries = json.loads(tree.read_text())["trials"]
    assert [entry["params"]["model_arch"] for entry in entries] == ["Custom_1"] * 2
    assert float(rows[1]["value"]) == entries[1]["values"][0]
    before = table.stat().st_mtime_ns
    _, err = run(searched, "study", "export", "csi_optimization", code=2)
    assert "--force" in one_line(err)
    assert table.stat().st_mtime_ns == before
    run(searched, "study", "export", "csi_optimization", folder, "--force")
    assert table.stat().st_mtime_ns > before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".csi_optimization.json"]


def test_nothing_in_an_export_or_a_copy_identifies_a_patient(searched, phantoms, tmp_path):
    run(searched, "study", "export", "csi_optimization", tmp_path)
    run(searched, "study", "copy", "csi_optimization", "--to", f"sqlite:///{tmp_path}/copy.db")
    names = {row["FileID"] for row in csv.DictReader((phantoms / "labels.csv").open(), delimiter=";")}
    assert len(names) > 50
    assert {path.name for path in tmp_path.iterdir()} >= {"copy.db", "csi_optimization_trials.csv"}
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert not [name for name in names if name.encode() in content]
        assert str(phantoms).encode() not in content


def test_a_study_moves_to_postgresql_continues_there_and_comes_back(searched, postgres_url):
    out, _ = run(searched, "study", "copy", "csi_optimization", "--to", postgres_url)
    assert "2 trials (2 complete)" in out
    url = postgres_url.replace("postgresql:", "postgresql+psycopg2:")
    there = ("--study-name", "csi_optimization", "--storage", url, "--work", str(searched))
    assert f"to continue there: {shlex.join(['csi-job', 'hyperopt', *there])}\n" in out
    with_postgres = ("--storage", postgres_url, "--max-epochs", 1, "--image-size", 32)
    run(searched, "hyperopt", *with_postgres, "--more-trials", 1)
    assert StudyReader(postgres_url, "csi_optimization").states() == {"COMPLETE": 3}
    back = ("study", "copy", "csi_optimization", "--storage", postgres_url, "--to", f"sqlite:///{searched}/studies.db")
    _, err = run(searched, *back, code=2)
    assert "--as NEW" in one_line(err)
    out, _ = run(searched, *back, "--as", "back")
    assert "studies.db as back: 3 trials (3 complete)" in out
    assert "back: 3 of 3 trials" in run(searched, "study", "list")[0]
    assert trials(searched)[:2] == [(0, "COMPLETE"), (0, "COMPLETE")]


def test_a_copied_sqlite_file_is_complete_by_itself(searched, tmp_path):
    work = tmp_path / "other work"
    run(searched, "study", "copy", "csi_optimization", "--to", f"sqlite:///{work}/studies.db")
    assert [path.name for path in work.iterdir()] == ["studies.db"]
    assert trials(work) == [(0, "COMPLETE"), (1, "COMPLETE")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("none", "--to", "sqlite:///WORK/new.db"), "no study of this name, got 'none'; allowed: csi_optimization"),
        (("csi_optimization", "--to", "mysql://h/d"), "this database cannot hold a study, got 'mysql'"),
        (("csi_optimization", "--to", "postgresql://a:b@c@h/d"), "--to contains more than one @"),
        (("csi_optimization", "--to", "sqlite:///WORK/new.db", "--as", "a/b"), "cannot have this name, got 'a/b'"),
        (("csi_optimization", "--to", "sqlite:///WORK/settings.yaml"), "file is not a database"),
        (
            ("csi_optimization", "--to", "postgresql://a@h/d", "--to-password-file", "WORK/none"),
            "--to-password-file cannot be read",
        ),
        (("csi_optimization",), "Missing option '--to'"),
    ],
)
def test_an_impossible_copy_is_rejected_in_one_line(searched, arguments, expected):
    _, err = run(searched, "study", "copy", *(word.replace("WORK", str(searched.parent)) for word in arguments), code=2)
    assert expected in one_line(err)
    assert not err.count("storage.")
    new = searched.parent / "new.db"
    assert not new.exists() or Reader(f"sqlite:///{new}").rows("SELECT * FROM studies") == []


def test_a_migrated_study_is_continued_in_its_wider_space(searched, tmp_path):
    wider = tmp_path / "wider.yaml"
    wider.write_text("space: {batch_size: {choices: [8, 16, 32]}}")

    def call(*arguments, code=0):
        process = Command(*arguments, "--work", str(searched), environment={**os.environ, **ENVIRONMENT})
        out, err = process.communicate()
        assert process.returncode == code, err
        return out, err

    out, _ = call("study", "migrate", "csi_optimization", "wider", "--n-trials", "3", "--config", str(wider))
    assert "2 trials migrated from csi_optimization to wider" in out
    assert "2 of 3 trials" in out
    call("hyperopt", "--study-name", "wider", "--max-epochs", "1")
    out, _ = call("study", "migrate", "csi_optimization", "wider")
    assert "3 of 3 trials" in out
    assert "0 trials migrated from csi_optimization to wider; 2 were already there" in out
    _, err = call("study", "migrate", "missing", "other", "--image-size", "500", code=2)
    assert "there is no study of this name, got 'missing'" in err
    _, err = call("study", "migrate", "csi_optimization", "other", "--objective", "f1-and-cost", code=2)
    assert 'objective (was "f1", now "f1-and-cost")' in one_line(err)
    with sqlite3.connect(searched / "studies.db") as database:
        names = [name for (name,) in database.execute("SELECT study_name FROM studies")]
    assert "other" not in names


COMMANDS = (
    *(("status", "--json"), ("report",), ("study", "list"), ("study", "show", "csi_optimization")),
    *(("study", "export", "csi_optimization", "--force"), ("hyperopt", "--more-trials", "3")),
    *(("train-optimized", "--candidates", "2", "--seeds", "1"), ("status", "--json")),
)


@pytest.mark.parametrize("value", [None, math.nan, "../x", [[1, [2]]]])
def test_what_another_program_stores_under_our_names_stops_no_command(searched, tmp_path, value):
    """Trials of every state, and the study, with values of other kinds, by Optuna's own API."""
    work = copy_work(searched, tmp_path / "work")
    (work / "models" / "hyperopt" / ".csi_optimization.json").unlink(missing_ok=True)  # another uid is another study
    study = optuna.load_study(study_name="csi_optimization", storage=f"sqlite:///{work}/studies.db")
    first = study.trials[0]
    foreign = {name: value for name in OF_TRIALS if not (value and name in OUTCOMES)}
    parts = {"params": first.params, "distributions": first.distributions}
    for state, result in ((COMPLETE, 0.99), (COMPLETE, 0.01), (TrialState.PRUNED, None), (TrialState.FAIL, None)):
        values = {"value": result, "intermediate_values": {0: 0.2}}
        study.add_trial(create_trial(state=state, **values, **parts, user_attrs=foreign))
    for _ in range(3):
        study.enqueue_trial(first.params, user_attrs=foreign)
    study.ask().report(0.3, 0)  # an orphan, which hyperopt resumes
    for name in (stored.TARGET_CHANGES, stored.SEED, stored.OBJECTIVE, stored.UID, stored.PLANNED_FOR):
        study.set_user_attr(name, value)
    before = [trial for trial in study.trials if trial.state.is_finished()]
    for command in COMMANDS:
        given = (*command, "--work", str(work), *(("--pruner", "hyperband") if command[0] == "hyperopt" else ()))
        result = CliRunner().invoke(cli, given)
        assert result.exit_code == 0, (command, result.output, result.exception)
    status = json.loads(result.output)
    states = Counter(trial.state for trial in study.get_trials())
    assert states[TrialState.FAIL] == 1  # what was enqueued is trained
    assert (status["num_complete"], status["num_failed"], status["running"]) == (states[COMPLETE], 1, [])
    assert status["num_finished"] == status["target"] == len(study.trials) - 1
    assert str([trial for trial in study.trials if trial.number in {old.number for old in before}]) == str(before)


@pytest.mark.parametrize(
    "fingerprint", [{}, [1], {"space": "x"}, {"space": {"optimizer": 5}}, {"trial": "y"}, {"cache": 5}], ids=str
)
def test_a_study_with_the_fingerprint_of_another_program_is_named_as_its_own(searched, tmp_path, fingerprint):
    work = copy_work(searched, tmp_path / "work")
    study = optuna.load_study(study_name="csi_optimization", storage=f"sqlite:///{work}/studies.db")
    study.set_user_attr(stored.FINGERPRINT, fingerprint)
    for command in (("hyperopt",), ("study", "create"), ("study", "migrate", "csi_optimization", "new")):
        result = CliRunner().invoke(cli, [*command, "--work", str(work)])
        assert str(result.exception).startswith("a study of this name was created by another program")
        assert result.exception.exit_code == 2
    for command in (("status",), ("report",), ("study", "show", "csi_optimization")):
        result = CliRunner().invoke(cli, [*command, "--work", str(work)])
        assert result.exit_code == 0, (command, result.exception)


@pytest.mark.parametrize("name", ["copy", "export", "migrate"])
def test_the_help_shows_an_example(name):
    out = CliRunner().invoke(cli, ["study", name, "--help"]).output
    assert f"csi-job study {name} " in out.partition("For example")[2]


def test_no_secret_is_in_what_is_written(postgres_url, tmp_path, monkeypatch):
    with contextlib.closing(open_storage(StorageSettings(), tmp_path, create=True)) as source:
        write_study_rows(source, simple_study(), "toy")
    monkeypatch.setenv("CSI_JOB_STORAGE__PASSWORD", PASSWORD)
    monkeypatch.setenv("CSI_JOB_TO_PASSWORD", PASSWORD)
    out, err = run(tmp_path, "study", "copy", "toy", "--to", postgres_url)
    assert "1 of them was running: the copy's next worker resumes it, from its checkpoint" in out
    storage = ("--storage", postgres_url)
    shown = [
        *(out, err),
        *run(tmp_path, "study", "copy", "toy", *storage, "--to", f"sqlite:///{tmp_path}/copy.db"),
        *run(tmp_path, "study", "export", "toy", tmp_path / "out", *storage),
    ]
    written = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(written) >= 4
    assert not any(PASSWORD in text for text in (*written, *shown))
    assert not any(postgres_url.partition("://")[2] in text for text in written)


@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_copy_takes_the_targets_own_password(tmp_path, monkeypatch, way):
    with contextlib.closing(open_storage(StorageSettings(), tmp_path, create=True)) as source:
        write_study_rows(source, simple_study(), "toy")
    monkeypatch.setenv("CSI_JOB_STORAGE__PASSWORD", "of the source")
    with guarded_server(PASSWORD) as server:
        monkeypatch.setenv("CSI_JOB_TO_URL", f"postgresql://anna@/csi?host={server.data}")
        _, err = run(tmp_path, "study", "copy", "toy", code=2)
        assert "no password supplied" in one_line(err)
        file = tmp_path / "password"
        file.write_text(f"{PASSWORD}\n")
        if way == "variable":
            monkeypatch.setenv("CSI_JOB_TO_PASSWORD", PASSWORD)
        run(tmp_path, "study", "copy", "toy", *(("--to-password-file", file) if way == "file" else ()))
        connection = psycopg2.connect(f"host={server.data} dbname=csi user=anna", password=PASSWORD)
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT study_name FROM studies")
            assert cursor.fetchall() == [("toy",)]
