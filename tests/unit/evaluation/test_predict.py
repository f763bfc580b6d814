import io
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.settings import CacheSettings
from csi_job.config import Settings
from csi_job.errors import ModelFileError, Problem
from csi_job.evaluation import predict as predict_module
from csi_job.evaluation.model_file import load_model, predict_probabilities
from csi_job.evaluation.predict import as_text, predict_images
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.pipeline import run_evaluate
from csi_job.prediction import run_predict
from csi_job.radiographs.read import read_radiograph
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import risk_class
from tests.support.dicom import dataset_of, encoded
from tests.unit.evaluation.conftest import write_model_file

RADIOGRAPHS = RadiographsSettings()


@pytest.fixture(scope="module")
def loaded(model_file):
    return load_model(model_file, torch.device("cpu"))


@pytest.fixture(scope="module")
def images(films):
    return sorted(films.images.iterdir())[:14]


def predict(loaded, paths, batch_size=4, advance=lambda _: None):
    return list(predict_images(loaded, paths, EvaluationSettings(batch_size=batch_size), RADIOGRAPHS, advance))


def test_a_form_that_the_model_card_overrules_is_not_ignored_without_a_word(model_file, images, caplog):
    given = {"architecture": "resnet18", "image_size_px": 64, "normalisation": "medical"}
    run_predict(Settings(), images[:1], model_file, io.StringIO(), "csv", **given)
    assert "says architecture Custom_1: that is used, not resnet18" in caplog.text
    assert "says image_size_px 32: that is used, not 64" in caplog.text
    assert "normalisation" not in caplog.text


def test_every_format_is_predicted_in_order_and_as_if_alone(loaded, images):
    assert len({"".join(path.suffixes) for path in images}) > 2
    results = predict(loaded, images)
    assert predict(loaded, []) == []
    assert [result.path for result in results] == images
    for path, result in zip(images, results, strict=True):
        pixels = torch.from_numpy(read_radiograph(path, 32, max_image_side_px=20_000))[None]
        expected = predict_probabilities(loaded, pixels, 1)[0]
        np.testing.assert_allclose(result.probabilities_ZK, expected, atol=1e-5)
        assert result.scores == tuple(expected.argmax(axis=1))
        if result.csi is not None:
            assert result.risk == risk_class(result.csi)
            assert sum(result.risk_probabilities) == pytest.approx(1)


def test_corrupt_files_become_problems_in_their_place_and_the_rest_is_predicted(loaded, images, tmp_path):
    cut, empty, missing = tmp_path / "cut.png", tmp_path / "empty.dcm", tmp_path / "missing.jpg"
    cut.write_bytes(next(path for path in images if path.suffix == ".png").read_bytes()[:60])
    empty.touch()
    results = predict(loaded, [cut, images[0], empty, tmp_path, missing, images[1]])
    assert [isinstance(result, Problem) for result in results] == [True, False, True, True, True, False]
    problems = [result for result in results if isinstance(result, Problem)]
    assert [problem.file_id for problem in problems] == [str(path) for path in (cut, empty, tmp_path, missing)]
    assert not any(problem.file_id in problem.what for problem in problems)


def test_an_image_that_hardly_shows_a_radiograph_is_predicted_and_doubted(loaded, images, tmp_path):
    dark = tmp_path / "dark.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8) // 20).save(dark)
    assert [result.doubt for result in predict(loaded, [images[0], dark])] == ["", "nearly all black"]


def test_predict_and_evaluate_give_the_same_probabilities_in_any_precision(cache_folder, model_file, films, tmp_path):
    cache, kept = Cache.open(cache_folder), {}
    shutil.copytree(cache_folder, tmp_path / "cache" / cache_folder.name)
    for precision in ("fp32", "bf16"):
        trial, evaluation = {"precision": precision}, {"batch_size": 1, "num_bootstrap": 100}
        settings = Settings(work=tmp_path, trial=trial, evaluation=evaluation, cache={"image_size_px": 32})
        run_predict(settings, [films.images], model_file, stream := io.StringIO(), "json")
        predicted = [
            [zone["probabilities"] for zone in film["zones"].values()] for film in json.loads(stream.getvalue())
        ]
        evaluated_NZK = run_evaluate(settings, model_file).evaluation.predictions.probabilities_NZK
        assert len(evaluated_NZK) == len(cache.split("test"))
        assert all(probabilities_ZK in predicted for probabilities_ZK in evaluated_NZK.round(6).tolist())
        kept[precision] = evaluated_NZK
    np.testing.assert_allclose(kept["bf16"], kept["fp32"], rtol=0, atol=0.01)
    assert (kept["bf16"] != kept["fp32"]).any()


def test_what_overflows_in_half_precision_is_computed_in_full(model_file, images):
    model = load_model(model_file, torch.device("cpu"), precision="fp16")
    with torch.no_grad():
        model.model.backbone[-1].bias[0] = 1e6
    assert predict(model, images[:1])[0].probabilities_ZK[0].tolist() == [1, 0, 0, 0, 0]


def test_decoders_fill_the_next_batch_while_one_is_computed(loaded, images, monkeypatch):
    next_is_read = threading.Event()

    def paths():
        for number, path in enumerate(images):
            if number == 7:  # the last of the second batch
                next_is_read.set()
            yield path

    def wait_and_predict(*args):
        assert next_is_read.wait(30)
        return predict_probabilities(*args)

    monkeypatch.setattr("csi_job.evaluation.predict.num_cores", lambda: 2)
    monkeypatch.setattr("csi_job.evaluation.predict.predict_probabilities", wait_and_predict)
    results = predict(loaded, paths())
    assert [result.path for result in results] == images


def test_files_are_read_as_needed_and_progress_counts_each_once(loaded, images):
    taken, done = 0, []

    def paths():
        nonlocal taken
        for path in images * 20:
            taken += 1
            yield path

    stream = predict_images(loaded, paths(), EvaluationSettings(batch_size=4), RADIOGRAPHS, done.append)
    next(stream)
    assert taken < 40
    stream.close()
    done.clear()
    predict(loaded, images, advance=done.append)
    assert sum(done) == len(images)


def test_without_a_graded_zone_there_is_neither_csi_nor_risk(model_file, images):
    loaded = load_model(model_file, torch.device("cpu"))
    with torch.no_grad():
        head = list(loaded.model.parameters())[-1]
        head.view(6, 5)[:, 4] = 100
    result = predict(loaded, images[:1])[0]
    assert result.scores == (4,) * 6
    assert (result.csi, result.risk, result.risk_probabilities, result.num_graded_zones) == (None, None, None, 0)
    assert result.to_json()["zones"]["left_sup"]["score"] == "unknown"


def test_a_name_that_is_not_unicode_is_written_with_escapes():
    assert as_text(Path(os.fsdecode(b"film\xff.png"))) == "film\\udcff.png"


@pytest.mark.parametrize(
    ("card", "given", "is_refused"),
    [
        ({}, {}, False),
        ({"max_image_side_px": 100}, {}, True),
        ({"max_image_side_px": 30_000}, {}, False),
        ({"max_image_side_px": 100}, {"max_image_side_px": 20_000}, False),
        ({"max_image_side_px": 30_000}, {"max_image_side_px": 100}, True),
    ],
)
def test_an_image_may_be_as_large_as_for_the_models_cache_unless_a_setting_says_otherwise(
    tmp_path, card, given, is_refused
):
    path, model = tmp_path / "film.png", write_model_file(tmp_path / "m.safetensors", **card)
    Image.effect_noise((101, 64), 50).save(path)
    settings = Settings(work=tmp_path, radiographs=given)
    (problem,) = run_predict(settings, [path], model, io.StringIO(), "csv") or [None]
    assert (problem is not None) == is_refused
    if problem:
        assert "101x64 pixels; allowed: up to 100 per side" in problem.what


def test_a_limit_of_size_that_no_setting_may_have_is_refused(tmp_path):
    model = write_model_file(tmp_path / "m.safetensors", max_image_side_px="many")
    with pytest.raises(ModelFileError, match="max_image_side_px is not allowed"):
        run_predict(Settings(work=tmp_path), [tmp_path / "film.png"], model, io.StringIO(), "csv")


def test_the_model_sees_large_films_as_the_cache_keeps_them(loaded, films, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(films.images, tmp_path / "images"))
    paths = sorted(folder.iterdir())
    large = Image.effect_noise((1500, 1100), 60)
    levels_HW = np.asarray(large.resize((1300, 1250), Image.Resampling.BICUBIC)).astype(np.uint16) * 16
    large.save(paths[0], "JPEG")
    large.save(paths[1], "JPEG2000")
    paths[2].write_bytes(encoded(dataset_of(levels_HW, WindowCenter=2048, WindowWidth=4096)))
    Image.fromarray(levels_HW).save(paths[3], "PNG")
    seen = []

    def recorded(loaded, images_NHW, batch_size):
        seen.extend(image_HW.numpy().tobytes() for image_HW in images_NHW)
        return predict_probabilities(loaded, images_NHW, batch_size)

    monkeypatch.setattr(predict_module, "predict_probabilities", recorded)
    assert not any(isinstance(result, Problem) for result in predict(loaded, paths))
    built = films.model_copy(update={"images": folder})
    cache = Cache.open(build_cache(built, CacheSettings(image_size_px=32), tmp_path / "work"))
    kept = [image_HW.numpy().tobytes() for name in SPLITS for image_HW in cache.split(name).images_NHW]
    assert sorted(seen) == sorted(kept)
