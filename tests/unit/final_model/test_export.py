import errno
import gc
import itertools
import json
import logging
import re
import resource
import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csi_job.cache.dataset import Cache
from csi_job.errors import CsiJobError
from csi_job.evaluation.evaluate import evaluate_model
from csi_job.evaluation.model_file import load_model
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import write_file
from csi_job.final_model import export
from csi_job.final_model.candidates import Candidate, CandidateResult
from csi_job.final_model.card import CardContext, build_card
from csi_job.final_model.export import publish, read_valid_card, record_test_metrics, remove_model, write_model
from csi_job.trial.metrics import WEIGHTED
from csi_job.trial.model import build_model
from csi_job.work_folder import ModelFolder, WorkFolder
from tests.unit.final_model.conftest import kept, recipe

HEADINGS = (
    "Model details; Intended use; Training data; Training; Metrics on the validation set; Metrics on the test set; "
    "Ethical considerations; Limits; Licence; Versions"
)
CPU, QUICK = torch.device("cpu"), EvaluationSettings(num_bootstrap=100)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return build_model("Custom_1").state_dict()


@pytest.fixture
def card(trainer, state, tmp_path):
    return new_card(trainer, state, tmp_path)


def new_card(trainer, state, tmp_path):
    """A real card: of an untrained model, measured on the validation split."""
    context = CardContext(
        "optimized_model", "s", trainer, dict.fromkeys(("train", "validation", "test"), 9), ("odd",), "r1"
    )
    result = CandidateResult(Candidate(recipe(), 3, 0.5), (kept(1, 0.4), kept(2, 0.6)))
    probe = tmp_path / "probe.pth"
    torch.save(state, probe)
    loaded = load_model(probe, CPU, architecture="Custom_1", image_size_px=32, normalisation="medical")
    evaluation = evaluate_model(
        loaded, trainer.cache.validation, QUICK, split="validation", cache=trainer.cache.info.key
    )
    return build_card(context, result, evaluation)


@pytest.fixture
def path(tmp_path, state, card):
    """A model with both file types and its card."""
    path = tmp_path / "models" / "m.safetensors"
    write_model(path, state, card, with_pth=True)
    return path


@pytest.fixture
def own_evaluation(path, cache_folder):
    """The model on its own test set."""
    cache = Cache.open(cache_folder)
    return evaluate_model(load_model(path, CPU), cache.split("test"), QUICK, split="test", cache=cache.info.key)


def test_both_file_types_load_as_the_model_with_its_card(tmp_path, state, card):
    path = tmp_path / "models" / "optimized_model.safetensors"
    written = write_model(path, state, card, with_pth=True)
    assert set(written["files"]) == {"optimized_model.safetensors", "optimized_model.pth"}
    assert read_valid_card(path) == json.loads(json.dumps(written))
    assert torch.load(path.with_suffix(".pth"), weights_only=True).keys() == state.keys()
    for suffix in (".safetensors", ".pth"):
        loaded = load_model(path.with_suffix(suffix), CPU)
        assert (loaded.architecture, loaded.image_size_px) == ("Custom_1", 32)
        assert loaded.card["params"] == card["params"]
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())


def test_the_card_has_every_section(tmp_path, state, card):
    path = tmp_path / "m.safetensors"
    write_model(path, state, card, with_pth=False)
    text = path.with_suffix(".md").read_text()
    assert "; ".join(re.findall(r"^## (.*)$", text, re.MULTILINE)) == HEADINGS
    assert card["data"]["cache"] in text
    assert "Not measured yet" in text
    assert "- odd" in text
    assert "0.5000, standard deviation 0.1414" in text
    assert (card["mean"], card["kept_seed"], card["test"]) == (0.5, 2, None)
    assert card["data"]["num_images"]["train"] == sum(map(sum, card["data"]["class_counts"]["train"])) / 6
    assert not path.with_suffix(".pth").exists()


def test_the_card_explains_a_weighted_validation_f1(trainer, state, card, tmp_path):
    settings = trainer.settings.model_copy(update={"objective_average": "weighted"})
    assert WEIGHTED in new_card(replace(trainer, settings=settings), state, tmp_path)["limits"]
    assert WEIGHTED not in card["limits"]


def test_the_cards_page_escapes_what_it_shows_and_has_its_metrics(tmp_path, state, card):
    path = tmp_path / "m.safetensors"
    metric = card["validation"]["metrics"]["f1_macro"]
    write_model(path, state, card | {"study": "<b>s"}, with_pth=False)
    text = path.with_suffix(".html").read_text()
    assert "&lt;b&gt;s, trial 3" in text
    assert "<b>" not in text
    assert f"{metric['value']:.3f} ({metric['interval'][0]:.3f} to {metric['interval'][1]:.3f})" in text
    assert "Not measured yet" in text
    assert "<script" not in text


class PulledPlugError(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def plug_pulled_at(step, monkeypatch):
    """Stop at the n-th removal or replacement of a file."""
    steps = itertools.count(1)

    def counted(real):
        def run(self, *arguments, **options):
            if next(steps) == step:
                raise PulledPlugError
            return real(self, *arguments, **options)

        return run

    with monkeypatch.context() as patch, pytest.raises(PulledPlugError):  # noqa: PT012 - the caller's statement
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        yield


def request_of(path) -> str | None:
    """Return the request of a model's card, None without a valid one; the weights carry the same."""
    card = read_valid_card(path)
    if card is None:
        return None
    assert load_model(path, CPU).card["request"] == card["request"]
    return str(card["request"])


@pytest.mark.parametrize("step", range(1, 9))
def test_a_kill_at_any_step_never_leaves_a_card_beside_weights_it_does_not_describe(
    path, state, card, monkeypatch, step
):
    with plug_pulled_at(step, monkeypatch):
        write_model(path, state, card | {"request": "r2"}, with_pth=True)
    load_model(path, CPU)  # old or new, but intact
    assert request_of(path) in (None, "r1", "r2")
    write_model(path, state, card | {"request": "r2"}, with_pth=True)
    assert request_of(path) == "r2"


@pytest.fixture
def folders(tmp_path, state, card):
    """The final models, baselines and evaluations of two studies, and of one of them as the latest."""
    work = WorkFolder(tmp_path)
    folders = {"a": work.final("a"), "b": work.final("b"), "latest": work.latest}
    write_file(work.report("s"), "the report that the cards link to")
    for name in ("a", "b"):
        for path in (folders[name].optimized_model, folders[name].baseline_model):
            write_model(path, state, card | {"request": name}, with_pth=path.stem == "optimized_model")
        write_file(folders[name].evaluations / "optimized_model.json", name)
    write_file(folders["b"].evaluations / "comparison.json", "b")
    publish(folders["b"], folders["latest"])
    write_file(folders["latest"].evaluations / "mine.json", "of a model of the user")
    return folders


def contents(folder: ModelFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in [*folder.path.glob("[!.]*.*"), *folder.evaluations.glob("*")]
        if path.suffix != ".html"
    }


def test_the_models_of_a_study_take_the_place_of_those_of_another(folders):
    publish(folders["a"], folders["latest"])
    latest = contents(folders["latest"])
    assert latest.pop("evaluation/mine.json") == b"of a model of the user"
    assert latest == contents(folders["a"])
    page = folders["latest"].optimized_model.with_suffix(".html")
    links = re.findall(r'href="([^"#]+)"', page.read_text())
    assert "hyperopt/s_report.html" in links
    assert all((page.parent / link).is_file() for link in links)


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_kill_while_a_new_evaluation_is_copied_keeps_the_models(folders, monkeypatch, step):
    with plug_pulled_at(step, monkeypatch):
        publish(folders["b"], folders["latest"])
    latest = folders["latest"]
    assert [request_of(path) for path in (latest.optimized_model, latest.baseline_model)] == ["b", "b"]


@pytest.mark.parametrize("step", range(1, 37))
def test_a_kill_while_models_are_replaced_never_mixes_those_of_two_studies(folders, monkeypatch, step):
    latest = folders["latest"]
    with plug_pulled_at(step, monkeypatch):
        publish(folders["a"], latest)
    cards = {request_of(path) for path in (latest.optimized_model, latest.baseline_model)} - {None}
    assert len(cards) <= 1
    assert "a" not in cards or (latest.evaluations / "optimized_model.json").read_text() == "a"
    publish(folders["a"], latest)
    assert contents(latest) == contents(folders["a"]) | {"evaluation/mine.json": b"of a model of the user"}


def test_two_studies_that_replace_the_latest_models_do_so_one_after_the_other(folders, monkeypatch, caplog):
    latest, copied, waiting = folders["latest"], [], threading.Event()
    real = shutil.copyfile

    def copy(source, target):
        copied.append("a" if Path(source).is_relative_to(folders["a"].path) else "b")
        if len(copied) == 2:
            second.start()
            assert waiting.wait(60)
        real(source, target)

    class Waiting(logging.Handler):
        def emit(self, record):
            if "another process is writing models" in record.getMessage():
                waiting.set()

    second = threading.Thread(target=publish, args=(folders["b"], latest))
    monkeypatch.setattr(shutil, "copyfile", copy)
    logging.getLogger("csi_job.files").addHandler(handler := Waiting())
    try:
        with caplog.at_level("INFO"):
            publish(folders["a"], latest)
        second.join()
    finally:
        logging.getLogger("csi_job.files").removeHandler(handler)
    assert contents(latest).items() >= contents(folders["b"]).items()
    assert [study for study, _ in itertools.groupby(copied)] == ["a", "b"]


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.json", "m.md", "../other"])
def test_a_card_is_invalid_once_one_of_its_files_is_missing_changed_or_elsewhere(path, name):
    if name == "m.safetensors":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif name == "../other":
        card = json.loads(path.with_suffix(".json").read_text())
        files = card["files"] | {name: {"sha256": ""}}
        write_file(path.with_suffix(".json"), json.dumps(card | {"files": files}))
    else:
        path.with_name(name).unlink()
    assert read_valid_card(path) is None


def test_metrics_of_weights_that_were_replaced_meanwhile_are_not_recorded(path, state, card, own_evaluation):
    write_model(path, state, card | {"request": "r2"}, with_pth=True)
    assert not record_test_metrics(path, own_evaluation)
    assert read_valid_card(path)["test"] is None


def test_test_metrics_are_filled_in_for_the_models_own_test_set(path, own_evaluation):
    before = read_valid_card(path)
    assert record_test_metrics(path.with_suffix(".pth"), own_evaluation)
    changed = read_valid_card(path)
    assert changed["test"]["metrics"]["f1_macro"]["value"] == own_evaluation.metrics["f1_macro"].value
    assert {**changed, "test": None} == before
    assert all("Not measured yet" not in path.with_suffix(end).read_text() for end in (".md", ".html"))


def test_a_card_of_version_0_1_is_read_with_todays_keys(path):
    written = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(written.replace('"std":', '"spread":'))
    assert '"spread"' in path.with_suffix(".json").read_text()
    assert read_valid_card(path) == json.loads(written)


def test_other_data_splits_and_models_without_a_card_leave_cards_alone(path, state, card, own_evaluation):
    assert not record_test_metrics(path, replace(own_evaluation, cache="f" * 16))
    assert not record_test_metrics(path, replace(own_evaluation, split="validation"))
    write_model(path, state, card, with_pth=False)
    assert not record_test_metrics(path.with_suffix(".pth"), own_evaluation)
    assert read_valid_card(path)["test"] is None


def test_a_read_only_folder_is_a_one_line_error(tmp_path, state, card):
    (tmp_path / "models").touch()
    with pytest.raises(CsiJobError, match="the model cannot be written"):
        write_model(tmp_path / "models" / "m.safetensors", state, card, with_pth=True)


def test_why_a_state_dict_cannot_be_written_is_said(tmp_path, state, card, monkeypatch):
    monkeypatch.setattr("csi_job.final_model.export.save", lambda *_: b"")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CsiJobError, match=r"^the model cannot be written \(File too large\)"):
            write_model(tmp_path / "m.safetensors", state, card, with_pth=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()  # a view of a BytesIO in the traceback would end Python 3.12.1 here


def test_which_file_of_a_card_cannot_be_written_is_said(path, own_evaluation, monkeypatch):
    real = export.write_atomic

    def fails(file, text):
        if file.suffix == ".html":
            raise OSError(errno.EIO, "Input/output error")
        real(file, text)

    monkeypatch.setattr(export, "write_atomic", fails)
    with pytest.raises(CsiJobError) as caught:
        record_test_metrics(path, own_evaluation)
    page = path.with_suffix(".html")
    message = f"the model card cannot be written (Input/output error), got '{page}'; "
    assert str(caught.value) == f"{message}check the disk and run the same command again"


def test_a_model_is_removed_with_the_files_that_describe_it(path):
    remove_model(path)
    assert [entry.name for entry in path.parent.iterdir()] == [".lock"]
    remove_model(path)
