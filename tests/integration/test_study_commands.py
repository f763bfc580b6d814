"""Export, backup, restore and migration as a user runs them: real processes, real phantoms, both databases."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from csi_job.cli import cli
from csi_job.transfer.backup_file import encode
from tests.integration.test_commands import ENVIRONMENT, SETTINGS, data, run, trials
from tests.support.carrying import simple_backup
from tests.support.processes import Command
from tests.support.studies import Reader

pytestmark = pytest.mark.timeout(900)  # the first test of the module waits for a search
PASSWORD = "{s3cret-%}@/: #"  # begins as a YAML mapping does


@pytest.fixture(scope="module")
def searched(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder after a search of two trials."""
    work = tmp_path_factory.mktemp("work") / "Röntgen bilder"
    run(work, "hyperopt", *data(phantoms), "--n-trials", 2, "--max-epochs", 1, "--image-size", 32)
    return work


def one_line(err: str) -> str:
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("csi-job: ")
    return err


def test_an_export_is_two_files_that_are_not_overwritten_unasked(searched: Path) -> None:
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
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_nothing_in_an_export_or_a_backup_tells_of_a_patient(searched: Path, phantoms: Path, tmp_path: Path) -> None:
    run(searched, "study", "export", "csi_optimization", tmp_path)
    run(searched, "study", "backup", "csi_optimization", tmp_path / "b.json")
    names = {row["FileID"] for row in csv.DictReader((phantoms / "labels.csv").open(), delimiter=";")}
    assert len(names) > 50
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert not [name for name in names if name in text]
        assert str(phantoms) not in text


def test_a_study_goes_to_postgresql_is_continued_there_and_comes_back(
    searched: Path, postgres_url: str, tmp_path: Path
) -> None:
    run(searched, "study", "backup", "csi_optimization", tmp_path / "study.json.gz")
    out, _ = run(tmp_path / "w", "study", "restore", tmp_path / "study.json.gz", "--storage", postgres_url)
    assert "2 trials (2 complete)" in out
    assert "csi-job hyperopt --study-name csi_optimization" in out
    with_postgres = ("--storage", postgres_url, "--max-epochs", 1, "--image-size", 32)
    run(searched, "hyperopt", *with_postgres, "--more-trials", 1)
    assert Reader(postgres_url).states() == {"COMPLETE": 3}
    run(searched, "study", "backup", "csi_optimization", tmp_path / "back.json", "--storage", postgres_url)
    _, err = run(searched, "study", "restore", tmp_path / "back.json", code=2)
    assert "--study-name" in one_line(err)
    run(searched, "study", "restore", tmp_path / "back.json", "--study-name", "back")
    assert "back: 3 of 3 trials" in run(searched, "study", "list")[0]


def test_a_backup_streams(searched: Path, tmp_path: Path) -> None:
    out, err = run(searched, "study", "backup", "csi_optimization", "-")
    assert json.loads(out)["format"] == "csi-job study backup"
    assert "2 complete" in err
    command = [sys.executable, "-c", "from csi_job.cli import main; main()", "study", "restore", "-"]
    subprocess.run([*command, "--work", str(tmp_path / "w")], input=out.encode(), check=True)
    assert trials(tmp_path / "w") == [(0, "COMPLETE"), (1, "COMPLETE")]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "a number": lambda content: content.replace(b"[0.5]", b"[0.9]"),
    "not ours": lambda _: b"number,state\r\n0,COMPLETE\r\n",
    "another version": lambda content: content.replace(b'"version":1', b'"version":2'),
}  # more of them in the unit tests of the file


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_backup_is_one_line_and_leaves_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    content = encode(simple_backup())
    file = tmp_path / "b.json"
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    _, err = run(tmp_path / "w", "study", "restore", file, code=2)
    one_line(err)
    assert not (tmp_path / "w").exists()


def test_a_file_that_exists_or_is_missing_is_one_line(searched: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("mine")
    _, err = run(searched, "study", "backup", "csi_optimization", kept, code=2)
    assert "--force" in one_line(err)
    assert kept.read_text() == "mine"
    run(searched, "study", "backup", "csi_optimization", kept, "--force")
    assert kept.read_text() != "mine"
    _, err = run(searched, "study", "restore", tmp_path / "none.json", code=2)
    assert "none.json" in one_line(err)
    _, err = run(searched, "study", "backup", "none", tmp_path / "n.json", code=2)
    assert "csi_optimization" in one_line(err)
    assert not (tmp_path / "n.json").exists()


def test_a_migrated_study_is_continued_in_its_wider_space(searched: Path, tmp_path: Path) -> None:
    wider = tmp_path / "wider.yaml"
    wider.write_text(SETTINGS.replace("[16, 32]", "[8, 16, 32]"))
    options = ["--work", str(searched), "--config", str(wider)]

    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        process = Command(*arguments, *options, environment={**os.environ, **ENVIRONMENT})
        out, err = process.communicate()
        assert process.returncode == code, err
        return out, err

    out, _ = call("study", "migrate", "csi_optimization", "wider", "--n-trials", "3")
    assert "2 trials copied from csi_optimization to wider" in out
    assert "2 of 3 trials" in out
    call("hyperopt", "--study-name", "wider", "--max-epochs", "1")
    out, _ = call("study", "migrate", "csi_optimization", "wider")
    assert "3 of 3 trials" in out
    assert "0 trials copied from csi_optimization to wider; 2 were already there" in out
    _, err = call("study", "migrate", "csi_optimization", "other", "--objective", "f1-and-cost", code=2)
    assert 'objective (was "f1", now "f1-and-cost")' in one_line(err)
    with sqlite3.connect(searched / "studies.db") as database:
        names = [name for (name,) in database.execute("SELECT study_name FROM studies")]
    assert "other" not in names


@pytest.mark.parametrize("name", ["export", "backup", "restore", "migrate"])
def test_the_help_teaches_by_an_example(name: str) -> None:
    out = CliRunner().invoke(cli, ["study", name, "--help"]).output
    assert f"csi-job study {name} " in out.partition("For example")[2]


def test_no_secret_is_in_what_is_written(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSI_JOB_STORAGE__PASSWORD", PASSWORD)
    file = tmp_path / "b.json"
    file.write_bytes(encode(simple_backup()))
    storage = ("--storage", postgres_url)
    restored, _ = run(tmp_path / "w", "study", "restore", file, *storage)
    assert "1 ran during the backup: the next worker takes each over, from its checkpoint" in restored
    told = [
        restored,
        *run(tmp_path / "w", "study", "backup", "toy", tmp_path / "out.json", *storage),
        *run(tmp_path / "w", "study", "export", "toy", tmp_path / "out", *storage),
    ]
    written = [path.read_text() for path in tmp_path.rglob("*.*") if path.suffix in {".json", ".csv"}]
    assert len(written) == 4
    for text in (*written, *told):
        assert PASSWORD not in text
        assert postgres_url.partition("://")[2] not in text


def test_a_server_that_is_not_there_is_waited_for_and_then_one_line(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSI_JOB_STORAGE__URL", "postgresql://anna:s3cret@127.0.0.1:1/csi")
    monkeypatch.setenv("CSI_JOB_STORAGE__CONNECT_S", "1.5")
    _, err = run(searched, "study", "list", code=1)
    assert "could not be used for" in err.splitlines()[-1]
    assert "refused" in err
    assert "s3cret" not in err
