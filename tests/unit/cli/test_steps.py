import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from csi_job.cli import cli
from csi_job.errors import ConfigurationError

PHANTOMS = ("--num-images", "6")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv("CSI_JOB_LOG_FORMAT", "auto")  # restored at the end


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["steps", "--log-format", "text", *words])


def test_commands_run_in_order_with_their_options(tmp_path):
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    result = run("phantoms", first, *PHANTOMS, "then", "phantoms", second, *PHANTOMS)
    assert result.exit_code == 0, result.output
    steps = [line.partition("step ")[2] for line in result.stderr.splitlines() if "step " in line]
    assert steps == ["1 of 2: phantoms", "2 of 2: phantoms"]
    assert len(list(tmp_path.glob("*/labels.csv"))) == 2


def test_all_steps_log_in_one_format():
    code = "from csi_job.cli import main; main()"
    words = ["steps", "--log-format", "json", "config", "show", "then", "report", "--work", "/nowhere"]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    *logged, last = result.stderr.splitlines()
    assert [json.loads(line)["step"] for line in logged] == ["config", "report"]
    assert last.startswith("csi-job: report: ")


def test_the_first_failure_ends_all_with_its_code_and_names_the_step(tmp_path):
    result = run("report", "--work", str(tmp_path), "then", "phantoms", str(tmp_path / "never"))
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception).startswith("report: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["phantoms", "{}", "then", "evaluate", "--modell", "x"], "No such option '--modell'"),
        (["phantoms", "{}", "then", "train"], "No such command 'train'"),
        (["phantoms", "{}", "then", "statsu"], "Did you mean 'status'?"),
        (["phantoms", "{}", "then"], "a command must stand before and after each 'then'"),
        (["then", "phantoms", "{}"], "a command must stand before and after each 'then'"),
        (["phantoms", "{}", "then", "then", "report"], "a command must stand before and after each 'then'"),
        ([], "Missing argument"),
    ],
)
def test_nothing_runs_if_a_command_cannot(words, expected, tmp_path):
    result = run(*(word.format(tmp_path / "data") for word in words))
    assert result.exit_code == 2
    assert expected in result.stderr
    assert not list(tmp_path.iterdir())
