import json
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from pydantic import SecretStr

from csi_job.errors import DataError
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.study.status import BestStatus, ConfirmationStatus, RunningStatus, StudyStatus, study_status
from csi_job.terminal.status import render_status, status_from_dict, status_json
from tests.support.studies import define
from tests.unit.terminal.conftest import shown

RUNNING = (
    RunningStatus(58, 2, 2, 12, 0.412, 3.2, is_orphan=False, host="gpu-1"),
    RunningStatus(57, 1, None, 12, None, None, is_orphan=True, host=""),
)
BEST = BestStatus(53, 0.7171, None, {"model_arch": "CheXNet", "learning_rate": 6.7e-4}, "the best val_f1, 0.7171")
FAILURES = (("KeyError in trial/model.py:3 [bold]", 3),)
STATUS = StudyStatus("a [b]study[/b]", "f1", 60, 41, 9, 4, 3, 0, 1, RUNNING, BEST, 14.2, 4320.0, FAILURES)


def test_the_terminal_shows_progress_best_trial_running_trials_and_failures():
    text = shown(render_status(STATUS))
    expected = ["a [b]study[/b]", "54 of 60 trials", "90%", "41 complete", "4 infeasible", "0.717", "3/12", "3 s ago"]
    expected += ["learning_rate 0.00067", "gpu-1", "orphaned, will be resumed", "KeyError in trial/model.py:3 [bold]"]
    assert [words for words in (*expected, "14.2 trials per hour, about 72 min left") if words not in text] == []
    assert "72 min left until" not in text
    limited = shown(render_status(replace(STATUS, ends_by_epochs=True)))
    assert "14.2 trials per hour, about 72 min left until study.max_epochs_total is reached" in limited


def test_with_two_objectives_the_chosen_trial_is_not_called_the_best():
    chosen = replace(BEST, gflops=2.87, rule="the cheapest within one standard error of the best, 0.7300 of trial 1")
    text = shown(render_status(replace(STATUS, best=chosen)))
    assert "Chosen trial 53, validation F1 0.717 at 2.87 GFLOPs per image: the cheapest" in text
    assert "Best validation F1" not in text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_output_fits_any_terminal_width(width):
    assert max(map(len, shown(render_status(STATUS), width).splitlines())) <= width


def test_json_has_every_number_of_the_status():
    content = json.loads(status_json(STATUS))
    assert (content["num_finished"], content["num_running"], content["is_finished"]) == (54, 1, False)
    assert content["best"]["params"] == BEST.params
    assert content["running"][0]["max_epochs"] == 12
    assert content["failures"] == [{"reason": FAILURES[0][0], "num_trials": 3}]


def test_a_new_study_is_shown_too(tmp_path):
    storage = open_storage(StorageSettings(url=SecretStr(f"sqlite:///{tmp_path}/studies.db")), tmp_path, create=True)
    study = define(storage, num_trials=7)
    text = shown(render_status(study_status(study)))
    assert "0 of 7 trials" in text
    assert "1 waiting" in text
    assert "No trial is complete yet." in text
    assert "Time left: unknown while no worker is running." in text
    assert "unknown until a trial has finished." in shown(render_status(replace(STATUS, trials_per_h=None)))
    assert json.loads(status_json(study_status(study)))["best"] is None
    study.add_trial(create_trial(state=TrialState.PRUNED))
    assert "No trial is complete yet." in shown(render_status(study_status(study)))
    outside = {"params": {"dropout": 0.5}, "distributions": {"dropout": FloatDistribution(0, 1)}}
    study.add_trial(create_trial(value=0.9, **outside))  # by another program
    assert "No trial within the search space is complete yet." in shown(render_status(study_status(study)))


@pytest.mark.parametrize(("target", "after"), [(8, ""), (16, " (after 8 of 16 trials)")])
def test_a_confirmation_from_before_trials_were_added_says_so(target, after):
    confirmed = ConfirmationStatus(6, 0, (), planned_for=8)
    status = replace(STATUS, target=target, confirmation=confirmed)
    assert f"Confirmation: 6 of 6 trainings done{after} " in shown(render_status(status))


def test_a_finished_study_says_what_to_do_next():
    finished = StudyStatus("s", "f1", 1, 1, 0, 0, 0, 0, 0, (), BEST, None, None, ())
    assert "(--more-trials K) or train the final model" in shown(render_status(finished))
    confirmed = replace(finished, confirmation=ConfirmationStatus(6, 0, (), planned_for=1))
    assert "or train the final model" in shown(render_status(confirmed))
    assert "or evaluate the final model" in shown(render_status(confirmed, has_model=True))
    more = replace(confirmed, target=2, num_complete=2)
    assert "or train the final model" in shown(render_status(more, has_model=True))


def test_a_status_survives_json():
    assert status_from_dict(json.loads(status_json(STATUS))) == STATUS
    nothing = StudyStatus("s", "f1", 1, 0, 0, 0, 0, 0, 1, (), None, None, None, ())
    assert status_from_dict(json.loads(status_json(nothing))) == nothing


def test_a_status_without_a_field_is_refused_and_new_fields_are_ignored():
    content = json.loads(status_json(STATUS))
    assert status_from_dict({**content, "new": 1}) == STATUS
    del content["target"]
    with pytest.raises(DataError, match="another version"):
        status_from_dict(content)
