import json
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csi_job.errors import ConfigurationError
from csi_job.final_model.hyperparams import HyperparamsFile, read_hyperparams
from csi_job.study.record import StudyRecord
from csi_job.trial.hyperparameters import Hyperparameters
from tests.unit.final_model.conftest import SMALL, write_hyperparams


def read(path) -> HyperparamsFile:
    return read_hyperparams(path, default_study="by_hand", default_max_epochs=30)


def refused(path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(path)
    return str(caught.value)


def test_the_best_params_of_a_study_are_a_search_result(tmp_path):
    file = read(write_hyperparams(tmp_path / "b.json", fingerprint={"cache": "abc", "space": {}}))
    assert file.params == Hyperparameters.from_params(SMALL)
    assert (file.study, file.trial, file.value, file.max_epochs, file.cache) == ("s", 0, 0.5, 2, "abc")
    assert (file.is_search_result, file.is_confirmed) == (True, False)


def test_optimized_params_are_already_confirmed(tmp_path):
    file = read(write_hyperparams(tmp_path / "o.json", confirmed=True, cache="abc"))
    assert (file.is_search_result, file.is_confirmed, file.cache) == (False, True, "abc")


@pytest.mark.parametrize("content", [{"params": {"learning_rate": 0.01}}, {"learning_rate": "1e-2"}])
def test_a_handwritten_file_takes_defaults_for_what_it_omits(tmp_path, content):
    path = tmp_path / "h.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    file = read(path)
    assert file.params == Hyperparameters(learning_rate=0.01)
    assert (file.study, file.max_epochs, file.trial, file.is_search_result) == ("by_hand", 30, None, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"learning_rat": 1}}, "unknown hyperparameter, got 'learning_rat'"),
        ({"params": {"learning_rate": -1}}, "learning_rate: must be a number above 0"),
        ({"params": {"model_arch": "ResNet51"}}, "no such architecture"),
        ({"params": []}, "contains no hyperparameters"),
        ({"params": {}}, "contains no hyperparameters"),
        ({"study": "../../etc"}, "cannot be used as a name"),
        ({"study": ".."}, "cannot be used as a name"),
        ({"study": 3}, "cannot be used as a name"),
        ({"study": ""}, "cannot be used as a name"),
        ({"max_epochs": 0}, "max_epochs cannot be used, got 0"),
        ({"max_epochs": "many"}, "max_epochs cannot be used"),
    ],
)
def test_invalid_content_is_named_in_one_line(tmp_path, changes, message):
    assert message in refused(write_hyperparams(tmp_path / "b.json", **changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", "[" * 100_000])
def test_anything_but_a_json_object_is_rejected(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    assert "JSON" in refused(path)


def test_a_missing_file_and_a_folder_are_rejected(tmp_path):
    assert "cannot be read" in refused(tmp_path / "missing.json")
    assert "cannot be read" in refused(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["params", "study", "max_epochs", "trial", "value", "confirmed", "fingerprint", "learning_rate"])


@settings(max_examples=200)
@given(content=st.dictionaries(KEYS, JSON, max_size=5))
@example(content={"params": {"learning_rate": 0.1}, "value": 10**400})
def test_junk_is_read_or_refused_but_never_a_traceback(tmp_path, content):
    path = tmp_path / "junk.json"
    path.write_text(json.dumps(content))
    with suppress(ConfigurationError):
        assert isinstance(read(path).params, Hyperparameters)


@pytest.mark.parametrize(("in_file", "in_database", "is_own"), [
    ("now", "now", True), ("before", "now", False), (None, "now", True), ("now", None, True)
])  # fmt: skip
def test_a_file_of_a_deleted_study_is_not_taken_for_one_of_the_study_that_has_its_name_now(
    in_file, in_database, is_own, tmp_path
):
    parts = {"fingerprint": {"average": "macro"}, "settings": {}}
    path = write_hyperparams(tmp_path / "b.json", study_uid=in_file, **parts)
    file = read_hyperparams(path, default_study="", default_max_epochs=1)
    found = StudyRecord("s", parts | {"uid": in_database})
    assert (file.record_of_study(found) is found) is is_own
    assert file.record_of_study(None).uid == in_file
