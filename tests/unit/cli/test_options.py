import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from csi_job.cli import COMMANDS, cli
from csi_job.cli.options import FLAGS, next_command, section_of, with_settings
from csi_job.config import load_settings
from csi_job.settings import help_of
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from tests.support.studies import define


def test_every_flag_names_a_setting_with_a_help_text():
    for path, flag in FLAGS.items():
        assert help_of(*section_of(path)), path
        assert flag.startswith("--")
    hyperopt = cli.get_command(click.Context(cli), "hyperopt")
    helps = {param.name: param.help for param in hyperopt.params}  # which shells show as they complete a flag
    assert helps["cache__image_size_px"] == "Width and height of the model's input images, in pixels.  [default: 224]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5
    assert "..." not in result.output.partition("Commands:")[2]  # no sentence is cut off


@pytest.mark.parametrize(
    "call",
    [
        *(["cache", "build", flag, ""] for flag in ("--work", "--labels", "--images", "--config")),
        *(["predict", ""], ["predict", "film.png", "--output", ""], ["predict", "film.png", "--model-path", ""]),
        *(["phantoms", ""], ["study", "export", "name", ""], ["cluster", "fetch", ""], ["config", "init", ""]),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_rejected_and_not_the_current_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, call)
    assert "must not be empty" in f"{result.output}{result.exception}"
    assert getattr(result.exception, "exit_code", result.exit_code) == 2
    assert not any(tmp_path.iterdir())


def test_flags_reach_the_settings_and_origins():
    seen = []

    @click.command()
    @with_settings("study.num_trials", "study.sampler")
    def command(loaded):
        seen.append(loaded)

    CliRunner().invoke(command, ["--n-trials", "7", "--sampler", "random", "--work", "x"], catch_exceptions=False)
    assert (seen[0].settings.study.num_trials, seen[0].settings.study.sampler) == (7, "random")
    assert seen[0].origins["study.num_trials"] == "flag --n-trials"


def test_the_next_command_names_what_a_study_does_not_know(tmp_path):
    config = tmp_path / "s.yaml"
    config.write_text("storage: {outage_s: 5}\nstudy: {seed: 3}")
    flags = {"work": "w 1", "storage.url": "postgresql://u:geheim@h/d?sslmode=require", "trial.pretrained": "x.pth"}
    command = next_command(load_settings(flags, config, {}), "hyperopt", "--study-name", "s")
    places = ["--work", "w 1", "--storage", "postgresql+psycopg2://u@h/d?sslmode=require", "--config", str(config)]
    assert shlex.split(command) == ["csi-job", "hyperopt", "--study-name", "s", *places, "--pretrained", "x.pth"]
    assert next_command(load_settings({}, None, {}), "evaluate") == "csi-job evaluate"
    config.write_text("work: w\nstudy: {seed: 3}")
    assert next_command(load_settings({}, config, {}), "evaluate") == f"csi-job evaluate --config {config}"


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("hyperopt", "224"),
        ("train-optimized", "the study's, else 224"),
        ("predict", "the model card's"),
        ("cache verify", "the study's, else 224"),
        ("study migrate", "that of NEW or OLD"),
    ],
)
def test_help_says_whose_value_is_the_default(name, default):
    words = [*name.split(), "--help"]
    text = CliRunner().invoke(cli, words, terminal_width=200, max_content_width=200).output
    assert re.search(rf"--image-size .*\[default: {default}\]\n", text)
    assert len(name.split()) > 1 or re.search(r"--device .*\[default: auto\]\n", text)


@pytest.mark.parametrize("name", ["hyperopt", "train-optimized", "evaluate"])
def test_every_next_command_has_the_options_that_it_is_given(name):
    flags = {"work": "w", "storage.url": "postgresql://u@h/d", "trial.pretrained": "x.pth"}
    _, _, *arguments = shlex.split(next_command(load_settings(flags, None, {}), name))
    command = cli.get_command(click.Context(cli), name)
    assert command.make_parser(click.Context(command)).parse_args(arguments)[1] == []


def csi_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from csi_job.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_change_nothing(closed):
    shown = subprocess.run(
        f"{shlex.quote(sys.executable)} -m csi_job config show {closed}", shell=True, capture_output=True, check=True
    )
    assert shown.stdout.startswith(b"work: .")


def test_a_terminal_without_a_size_is_written_to(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    code = "import sys; from csi_job.__main__ import main; import csi_job.cli as c; from rich.console import Console\n"
    code += "c.main = lambda: Console().print('shown'); main()"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"shown\n"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["statsu"], 2, "Did you mean 'status'?"),
        (["export"], 2, "No such command 'export'. Did you mean 'study export'?"),
        (["show"], 2, "Did you mean 'config show' or 'study show'?"),
        (["hyperopt", "--nonsense"], 2, "No such option"),
        (["status", "--every", "nan"], 2, "nan is not a number of seconds"),
        (["status", "--every", "inf"], 2, "inf is not in the range 0.2<=x<=86400.0"),
        (["cluster", "check", "--wait", "nan"], 2, "nan is not a number of seconds"),
        (["status", "--work", "x" * 5000], 2, "xxx); name another path"),
        *(
            (words, 2, "the work folder is a file or a broken link, got")
            for words in (["status", "--work", __file__], ["study", "list", "--work", f"{__file__}/below"])
        ),
        (["hyperopt", "--n-trials", "many"], 2, "csi-job hyperopt --help"),
        (["hyperopt", "--sampler", "magic"], 2, "'tpe', 'tpe_per_cost', 'random', 'cmaes', 'auto'"),
        (["config", "show", "--config", "none.yaml"], 2, "none.yaml"),
        (["config", "show", "--config", "a.yaml", "--config", "b.yaml"], 2, "give one file"),
        (["study", "enqueue", "s", "learning_rate"], 2, "PARAMETER=VALUE"),
        (["study", "enqueue", "s", "patience=5", "patience=6"], 2, "given twice, got 'patience=5 patience=6'"),
        (["phantoms", "/proc/none"], 2, "/proc/none"),
        *(
            (["study", *words.split()], 2, "not UTF-8 text, got '\\udcff'")
            for words in (
                *("show \udcff", "delete \udcff", "enqueue s \udcff", "export \udcff"),
                *("copy \udcff --to sqlite:///x.db", "migrate \udcff s", "migrate s \udcff"),
            )
        ),
    ],
)
def test_an_invalid_call_is_one_line_on_standard_error(arguments, code, expected):
    result = csi_job(*arguments)
    assert result.returncode == code, result.stderr
    assert expected in result.stderr
    assert result.stderr.startswith("csi-job: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_character_that_the_locale_lacks_is_escaped(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setenv("CSI_JOB_STUDY__NAME", "肺")
    result = csi_job("config", "show")
    assert (result.returncode, result.stderr) == (0, "")
    assert "study.name: \\u80ba " in result.stdout


@pytest.mark.parametrize(("at_terminal", "expected"), [(True, (5.0, 5.0)), (False, (60.0, 900.0))])
def test_only_at_a_terminal_a_reading_command_waits_briefly(at_terminal, expected, monkeypatch):
    monkeypatch.setattr("csi_job.cli.options.is_interactive", lambda: at_terminal)
    seen = []
    command = click.command()(with_settings("storage.url", reads_only=True)(seen.append))
    for environment in ({}, {"CSI_JOB_STORAGE__CONNECT_S": "30"}):
        CliRunner().invoke(command, [], env=environment, catch_exceptions=False)
    storages = [loaded.settings.storage for loaded in seen]
    assert (storages[0].connect_s, storages[0].outage_s) == expected
    assert storages[1].connect_s == 30


def test_a_character_that_is_not_ascii_is_escaped_in_a_table_too(tmp_path, monkeypatch):
    storage = open_storage(StorageSettings(url=SecretStr(f"sqlite:///{tmp_path}/studies.db")), tmp_path, create=True)
    define(storage, name="肺")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:surrogateescape")  # as LC_ALL=C with PYTHONUTF8=0
    result = csi_job("status", "--study-name", "肺", "--work", str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u80ba" in result.stdout
