"""Each command imports only the heavy packages that it uses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from csi_job.evaluation.model_file import FORMAT
from csi_job.study.importances import MIN_TRIALS
from csi_job.study.target import set_target
from csi_job.trial.model import build_model
from tests.support.studies import work_on

HEAVY = {
    *("torch", "torch._dynamo", "torchvision", "triton", "optuna", "sqlalchemy", "alembic"),
    *("psycopg2", "sqlalchemy.dialects.postgresql"),
    *("sklearn", "scipy", "plotly.graph_objects", "pandas", "wandb", "kubernetes", "pydicom"),
}


def imported_by(arguments: list[str], code: int = 0, message: str = "") -> set[str]:
    """Run a command in a new interpreter, and return the heavy packages that it imported."""
    script = (
        "import atexit, sys; from csi_job.cli import main\n"
        f"atexit.register(lambda: print(*({HEAVY!r} & set(sys.modules)), sep='\\n', file=sys.stderr))\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    if message:  # in one line
        assert message in lines[0]
        assert {*lines[1:]} <= {*HEAVY, ""}
    return HEAVY & set(lines)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["hyperopt", "--help"], ["config", "show"], [], ["study"]]
)
def test_help_and_settings_import_nothing_heavy(arguments):
    assert imported_by(arguments) == set()


def test_status_and_report_import_the_database_only(study, tmp_path):
    set_target(study, num_trials=MIN_TRIALS)
    work_on(study, tmp_path, pruner="none")
    named = ["--work", str(tmp_path), "--study-name", "toy"]
    assert imported_by(["status", *named]) <= {"optuna", "sqlalchemy"}
    assert imported_by(["report", *named]) <= {"optuna", "sqlalchemy"}
    assert "How much of the difference" in (tmp_path / "models/hyperopt/toy_report.html").read_text()


@pytest.mark.parametrize(("arch", "expected"), [("Custom_1", {"torch"}), ("resnet18", {"torch", "torchvision"})])
def test_predict_imports_torch_without_its_compiler(arch, expected, tmp_path):
    card = {"architecture": arch, "image_size_px": 32, "normalisation": "medical"}
    model, film = tmp_path / "m.safetensors", tmp_path / "film.png"
    save_file(build_model(arch).state_dict(), model, {"format": FORMAT, "card": json.dumps(card)})
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) // 16).save(film)
    assert imported_by(["predict", str(film), "--model-path", str(model)]) == expected


def test_nothing_follows_an_error_once_everything_is_imported(tmp_path):
    script = "import triton; from csi_job.cli import main; main()"
    command = [sys.executable, "-c", script, "study", "show", "toy", "--work", "."]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    [error] = result.stderr.splitlines()
    assert error.startswith("csi-job: there is no study")


TABLE, FOLDER = ["--labels", "labels.csv"], ["--images", "."]
PNG = ["predict", "film.png"]
NEEDED = {"status": {"optuna", "sqlalchemy"}, "train-optimized": {"optuna"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hyperopt"], "there is no cache yet"),
        (["cache", "build"], "there is no cache yet"),
        (["hyperopt", *TABLE], "radiographs.images is not set"),
        (["hyperopt", *FOLDER], "radiographs.labels is not set"),
        (["hyperopt", "--labels", "typo.csv", *FOLDER], "the label table does not exist, got 'typo.csv'"),
        (["study", "create", *TABLE, "--images", "typo"], "the folder of images cannot be read"),
        (["cache", "build", "--labels", "typo.csv", "--images", "typo"], "the label table does not exist"),
        (["hyperopt", "--labels", "x" * 300, *FOLDER], "the label table cannot be read (File name too long)"),
        (["cache", "build", *TABLE, "--images", "x" * 300], "the folder of images cannot be read (File name too long)"),
        (["cache", "build", *TABLE, *FOLDER], "labels.csv: the label table is empty"),
        (["cache", "verify"], "there is no cache yet"),
        (["hyperopt", *TABLE, *FOLDER, "--pretrained", "typo.pth"], "no such weights file, got 'typo.pth'"),
        (["hyperopt", *TABLE, *FOLDER, "--config", "typo.yaml"], "the settings file cannot be read"),
        (["hyperopt", "--sampler", "cmaes", "--objective", "f1-and-cost"], "this sampler handles one objective only"),
        (["hyperopt", "--storage", "postgresql://u@127.0.0.1:1/db"], "there is no cache yet"),
        (["hyperopt", "--image-size", "7"], "greater than or equal to 32"),
        (["hyperopt", "--study-name", "a/b"], "study.name"),
        (["train-optimized", "--hyperparams", "typo.json"], "typo.json"),
        (["status"], "csi-job hyperopt"),
        (["report"], "there is no study yet: the database file does not exist"),
        (["study", "list"], "there is no study yet"),
        (["study", "show", "s"], "there is no study yet"),
        (["study", "export", "s"], "there is no study yet"),
        (["eval"], "there is no such model file"),
        (["evaluate"], "there is no such model file"),
        (["evaluate", "--model-path", "typo.pth"], "there is no such model file, got 'typo.pth'"),
        (["evaluate", "--model-path", "m.pth", "--baseline", "typo.pth"], "'typo.pth'; name one with --baseline"),
        (["evaluate", "--model-path", "m.pth"], "there is no cache yet"),
        ([*PNG], "there is no such model file"),
        ([*PNG, "--model-path", "m.pth"], "none of the images exists, got 'film.png'"),
        (["predict", ".", "--model-path", "m.pth", "--output", "typo/scores.csv"], "the folder of --output does not"),
    ],
)
def test_a_wrong_path_or_missing_option_is_found_before_anything_heavy_is_imported(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("labels.csv", "m.pth"):
        (tmp_path / name).touch()
    assert imported_by(arguments, 2, message) <= NEEDED.get(arguments[0], set())
    assert not [*tmp_path.rglob("studies.db")]
