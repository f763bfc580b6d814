import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csi_job.errors import ModelFileError, Problem
from csi_job.evaluation.predict import Prediction
from csi_job.evaluation.predictions_file import COLUMNS, split_predictions_csv, write_predictions
from csi_job.radiographs.zones import RISK_CLASSES, ZONES
from tests.unit.evaluation.conftest import random_predictions


def prediction(name="a, b.png", scores=(0, 1, 2, 3, 4, 0)) -> Prediction:
    probabilities = np.full((6, 5), 0.1) + 0.5 * np.eye(5)[list(scores)]
    return Prediction(Path(name), scores, probabilities, 1.5, "medium", (0.2, 0.7, 0.1))


UNGRADED = Prediction(Path("u.png"), (4,) * 6, np.eye(5)[[4] * 6], None, None, None)
PROBLEM = Problem("the image file is empty", file_id='söme "file".dcm')


def written(results, file_format) -> tuple[str, list[Problem]]:
    stream = io.StringIO(newline="")
    problems = write_predictions(iter(results), stream, file_format)
    return stream.getvalue(), problems


def test_csv_has_one_row_per_file_in_order_with_problems_in_their_place():
    text, problems = written([prediction(), PROBLEM, UNGRADED], "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert written([], "csv")[0].splitlines() == text.splitlines()[:1]
    assert [row["file"] for row in rows] == ["a, b.png", 'söme "file".dcm', "u.png"]
    assert tuple(rows[0]) == COLUMNS
    shown = [rows[0][name] for name in ("csi", "mean_score", "risk", "p_medium_risk")]
    assert shown == ["1.5000", "1.2000", "medium", "0.7000"]  # the scores 0, 1, 2, 3 and 0 of five graded zones
    assert [rows[0][zone] for zone in ZONES] == ["0", "1", "2", "3", "unknown", "0"]
    assert float(rows[0]["right_inf_p_unknown"]) == pytest.approx(0.6)
    assert rows[1]["problem"] == "the image file is empty"
    assert rows[1]["csi"] == ""
    assert [rows[2][name] for name in ("csi", "mean_score", "risk", "num_graded_zones")] == ["", "", "", "0"]
    assert problems == [PROBLEM]


def test_a_doubtful_image_has_scores_and_a_problem_and_is_no_failure():
    doubtful = replace(prediction(), doubt="nearly flat")
    text, problems = written([doubtful], "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["csi"], row["problem"], problems) == ("1.5000", "doubtful: nearly flat", [])
    assert json.loads(written([doubtful, prediction()], "json")[0])[0]["doubt"] == "nearly flat"


def test_a_file_name_is_no_formula_in_csv_and_stays_as_it_is_in_json():
    results = [prediction("=1+1.png"), Problem("torn", file_id="@SUM(A1).dcm")]
    rows = list(csv.DictReader(io.StringIO(written(results, "csv")[0])))
    assert [row["file"] for row in rows] == ["'=1+1.png", "'@SUM(A1).dcm"]
    assert [row["file"] for row in json.loads(written(results, "json")[0])] == ["=1+1.png", "@SUM(A1).dcm"]


def test_json_is_an_array_of_the_same_results():
    text, problems = written([prediction(), PROBLEM, UNGRADED], "json")
    assert written([], "json")[0] == "[]\n"
    first, problem, ungraded = json.loads(text)
    assert first["mean_score"] == 1.2
    assert first["risk_probabilities"] == {"low": 0.2, "medium": 0.7, "high": 0.1}
    assert first["zones"]["left_mid"]["score"] == 3
    assert problem == {"file": 'söme "file".dcm', "problem": "the image file is empty"}
    assert ungraded["csi"] is None
    assert ungraded["risk_probabilities"] is None
    assert problems == [PROBLEM]


def test_json_stays_valid_where_the_model_fails_midway():
    def results():
        yield prediction()
        what = "the model's output is not finite"
        raise ModelFileError(what)

    stream = io.StringIO()
    with pytest.raises(ModelFileError):
        write_predictions(results(), stream, "json")
    assert len(json.loads(stream.getvalue())) == 1


def test_the_predictions_of_a_split_keep_the_order_of_images_that_a_confident_model_ranks():
    predictions = random_predictions(60, 0, skill=30.0)
    rows = list(csv.DictReader(io.StringIO(split_predictions_csv(predictions), newline="")))
    for name, risk_N in zip(RISK_CLASSES, predictions.predicted.risk_NR.T, strict=True):
        assert [float(row[f"p_{name}_risk"]) for row in rows] == risk_N.tolist()
        assert len({row[f"p_{name}_risk"] for row in rows}) == len(set(risk_N.tolist())) > 30
