import csv
import functools
import io
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError
from csi_job.report.study_view import view_study
from csi_job.storage.attributes import (
    CURVE,
    ENDED,
    EPOCHS,
    F1_SE,
    FINGERPRINT,
    LOSSES,
    MICRO_BATCH,
    NUM_PARAMETERS,
    OBJECTIVE,
    PHASE,
    RUNS,
    SAMPLER,
    SETTINGS,
    TARGET,
    UID,
)
from csi_job.storage.claim import count_trials
from csi_job.storage.lease import new_token
from csi_job.storage.optuna_private import study_id_of
from csi_job.study.definition import load_study
from csi_job.study.status import study_status
from csi_job.study.studies import enqueue_trial, list_studies
from csi_job.transfer.copy import write_study_rows
from csi_job.transfer.export import export_files, to_csv, to_json, write_export
from csi_job.trial.space import SearchSpace
from tests.support.carrying import odd_trials, studies
from tests.support.studies import define, work_on


@pytest.fixture
def study(storage, tmp_path):
    made = define(storage, num_trials=6)
    work_on(made, tmp_path, num_trials=6)
    made.set_user_attr("target", 20)
    odd_trials(made)
    return made


def csv_of(study: optuna.Study) -> bytes:
    return to_csv(study, study.trials)


def json_of(study: optuna.Study) -> bytes:
    return to_json(study, study.trials)


def rows_of(study: optuna.Study) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(csv_of(study).decode("utf-8-sig"), newline=""))]


def test_one_row_per_trial_with_the_names_of_optunas_dataframe(study):
    rows = rows_of(study)
    assert [int(row["number"]) for row in rows] == list(range(10))
    for row, trial in zip(rows, study.trials, strict=True):
        assert row["state"] == trial.state.name
        assert row["params_unknown_weight"] == str(trial.params.get("unknown_weight", ""))
        assert row["params_optimizer"] == trial.params.get("optimizer", "")
        assert row["value"] == ("" if trial.value is None else str(trial.value))
        for step, value in trial.intermediate_values.items():
            assert row[f"intermediate_values_{step}"] == str(value)
        if trial.datetime_complete is not None:
            assert datetime.fromisoformat(row["datetime_complete"]) == trial.datetime_complete.astimezone(UTC)
            assert row["datetime_complete"].endswith("Z")
    assert [row["is_baseline"] for row in rows] == ["true"] + ["false"] * 9
    assert rows[0]["attempt"] == "1"
    epochs = [name for name in rows[0] if name.startswith("intermediate_values_")]
    assert epochs == [f"intermediate_values_{step}" for step in (0, 1, 2, 3, 7)]


def test_outcomes_distinguish_what_states_do_not(study):
    for state, mark in ((TrialState.PRUNED, "infeasible"), (TrialState.FAIL, "cancelled")):
        study.add_trial(optuna.trial.create_trial(state=state, user_attrs={mark: True}))
    outcomes = [row["outcome"] for row in rows_of(study)]
    assert outcomes[6:] == ["complete", "pruned", "failed", "waiting", "infeasible", "cancelled"]


def test_the_json_holds_everything_that_is_stored(study):
    tree = json.loads(json_of(study))
    assert tree["directions"] == ["maximize"]
    assert tree["target"] == 20
    assert tree["user_attrs"]["fingerprint"] == study.user_attrs["fingerprint"]
    for entry, trial in zip(tree["trials"], study.trials, strict=True):
        assert entry["params"] == trial.params
        assert entry["outcome"] in {"complete", "pruned", "failed", "waiting"}
        assert [float(value) for _, value in entry["curve"]] == pytest.approx(
            [value for _, value in sorted(trial.intermediate_values.items())], nan_ok=True
        )
    assert tree["trials"][0]["system_attrs"] == study.trials[0].system_attrs
    assert tree["trials"][6]["values"] == ["-inf"]
    assert tree["trials"][6]["user_attrs"]["nan"] == "nan"


@given(studies())
@settings(max_examples=40)
def test_any_study_gives_strict_json_and_one_row_per_trial(storage, rows):
    def refuse(word):
        raise AssertionError(word)

    name = new_token()
    write_study_rows(storage, rows, name)
    made = load_study(storage, name)
    assert len(json.loads(json_of(made), parse_constant=refuse)["trials"]) == len(rows.trials)
    assert len(rows_of(made)) == len(rows.trials)


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1"])
def test_no_text_is_evaluated_by_a_spreadsheet(study, text):
    attributes = {"reason": text, "lines": "one\ntwo\r\nthree", "list": [1, "é"], "yes": True}
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes))
    row = rows_of(study)[-1]
    assert row["user_attrs_reason"] == f"'{text}"
    assert row["user_attrs_lines"] == "one two three"
    assert json.loads(row["user_attrs_list"]) == [1, "é"]
    assert row["user_attrs_yes"] == "true"
    assert len(csv_of(study).decode("utf-8-sig").split("\r\n")) == 1 + 11 + 1  # one line per trial


def test_two_objectives_have_a_column_each_and_their_curve(storage, tmp_path):
    made = define(storage, name="two", objective="f1-and-cost", num_trials=2)
    work_on(made, tmp_path, name="two", objective="f1-and-cost", num_trials=2, pruner="none")
    row = rows_of(made)[0]
    assert (row["values_0"], row["values_1"]) == ("0.5", "4.0")
    assert "value" not in row
    assert float(row["intermediate_values_3"]) == 0.5 * (1 - 0.5**4)
    assert len(json.loads(json_of(made))["trials"][0]["curve"]) == 4


def test_a_study_of_another_program_is_exported_too(storage):
    other = optuna.create_study(storage=storage, study_name="a/b")
    other.add_trial(optuna.trial.create_trial(value=math.inf, user_attrs={"curve": "none"}))
    assert [row["value"] for row in rows_of(other)] == ["inf"]
    assert json.loads(json_of(other))["target"] is None


CURVES = [[["a", 1]], [[None, 1]], [[math.nan, 1]], [[[1], 1]], [[1]], [[1, "x"], [1, 2], [0, None]], {"a": 1}, "ab", 7]


@pytest.mark.parametrize("curve", CURVES)
def test_any_attribute_of_another_program_is_exported(storage, curve):
    other = optuna.create_study(storage=storage, study_name="other")
    other.add_trial(optuna.trial.create_trial(value=1, user_attrs={CURVE: curve}))
    assert len(rows_of(other)) == 1
    (entry,) = json.loads(json_of(other))["trials"]
    assert entry["curve"] == []
    assert repr(entry["user_attrs"][CURVE]) == repr(curve).replace("nan", "'nan'")
    assert view_study(other).trials[0].curve == ()


@pytest.mark.parametrize("value", ["odd", {"a": 1}, [1, 2], [[1]], [["a", "b", "c"]]])
def test_a_study_of_another_program_is_read_whatever_it_keeps_under_our_names(storage, value):
    other = optuna.create_study(storage=storage, study_name="other")
    for name in (TARGET, OBJECTIVE, FINGERPRINT, SETTINGS, UID, ENDED):
        other.set_user_attr(name, value)
    names = (RUNS, LOSSES, F1_SE, EPOCHS, NUM_PARAMETERS, MICRO_BATCH)
    other.add_trial(optuna.trial.create_trial(value=1, user_attrs=dict.fromkeys((*names, SAMPLER, *PHASE), value)))
    view = view_study(other)
    (trial,) = view.trials
    assert view.phases[0].pruning == str(value)
    assert (trial.losses, trial.f1_error, len(trial.runs)) == ((), None, 1)
    assert trial.seconds == pytest.approx(0.0, abs=1.0)
    assert (trial.num_epochs, trial.num_parameters, trial.micro_batch) == (0, None, None)
    assert (study_status(other).num_complete, study_status(other).target) == (1, 0)
    assert [study.counts for study in list_studies(storage)] == [None]
    with pytest.raises(ConfigurationError, match="not created by csi-job"):
        storage.read(functools.partial(count_trials, study_id=study_id_of(other)))
    with pytest.raises(ConfigurationError, match="other"):
        enqueue_trial(other, SearchSpace(), {})
    assert len(rows_of(other)) == 1


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]])
def test_a_study_without_trials_has_the_header_of_one_with_trials(storage, directions):
    other = optuna.create_study(storage=storage, study_name="other", directions=directions)
    empty = csv_of(other)
    other.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    assert empty.splitlines() == csv_of(other).splitlines()[:1]
    assert empty.startswith(b"\xef\xbb\xbfnumber,state,")


def test_both_files_go_to_a_folder_and_one_to_a_file_name(study, tmp_path):
    both = export_files(tmp_path / "new", "a/b")
    assert both == [tmp_path / "new" / "a_b_trials.csv", tmp_path / "new" / "a_b_trials.json"]
    one = export_files(tmp_path / "T.CSV", "toy")
    assert one == [tmp_path / "T.CSV"]
    assert write_export(study, [*both, *one]) == 10
    assert both[0].read_bytes() == one[0].read_bytes()
    assert json.loads(both[1].read_text())["study"] == "toy"
    (tmp_path / "file.txt").touch()
    with pytest.raises(ConfigurationError, match=r"\.csv or \.json"):
        export_files(tmp_path / "file.txt", "toy")
    with pytest.raises(ConfigurationError, match="not to standard output, got '-'"):
        export_files(Path("-"), "toy")
