"""A study's totals of trials, lowered and raised while trials wait, and of epochs, on both databases."""

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import CURVE, MAX_EPOCHS_TOTAL
from csi_job.storage.claim import NothingToClaim
from csi_job.storage.rungs import Rungs
from csi_job.storage.storage import open_storage
from csi_job.storage.tables import STUDY_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, count_epochs
from csi_job.study.record import StudyRecord
from csi_job.study.status import study_status
from csi_job.study.studies import enqueue_trial
from csi_job.study.target import set_target
from tests.support.reader import StudyReader, check_exact
from tests.support.studies import (
    SPACE,
    claim,
    define,
    leased,
    objective,
    pause,
    storage_settings,
    study_counts,
    work_on,
)

RULES = {"rungs": Rungs(1, 2)}
DONE = TrialWrite(values=[0.5], state=TrialState.COMPLETE)


def test_waiting_trials_beyond_a_lowered_target_are_cancelled_and_do_not_count_as_failures(storage, url, caplog):
    study = define(storage, num_trials=5)
    storage.write_trial(leased(study), DONE)
    for x in (0.1, 0.2, 0.3):
        enqueue_trial(study, SPACE, {"unknown_weight": x})
    assert set_target(study, num_trials=2) == 2
    assert "beyond the study's total of 2: 2, 3" in caplog.text
    assert StudyReader(url).states() == {"COMPLETE": 1, "FAIL": 2, "WAITING": 1}
    storage.write_trial(leased(study, max_failed=0), DONE)
    assert isinstance(claim(study, max_failed=0), NothingToClaim)
    assert caplog.text.count("beyond the study's total") == 1
    set_target(study, num_trials=3)
    enqueue_trial(study, SPACE, {"unknown_weight": 0.4})
    storage.set_study_user_attr(study._study_id, "target", 1)  # by a worker of an earlier version
    assert isinstance(claim(study, max_failed=0), NothingToClaim)
    assert StudyReader(url).states() == {"COMPLETE": 2, "FAIL": 3}
    reasons = [trial.user_attrs["reason"] for trial in study.get_trials(states=(TrialState.FAIL,))]
    assert reasons == [f"cancelled while waiting: beyond the study's total of {total}" for total in (2, 2, 1)]


def test_enqueueing_into_a_full_study_is_refused_unless_its_total_may_be_raised(storage, monkeypatch):
    study = define(storage, num_trials=2)

    def write_after_another(operation):
        monkeypatch.undo()
        enqueue_trial(study, SPACE, {"unknown_weight": 0.2})
        return storage.write(operation)

    monkeypatch.setattr(storage, "write", write_after_another)  # the last place is taken just before the transaction
    with pytest.raises(ConfigurationError, match=r"no room.*--raise-total"):
        enqueue_trial(study, SPACE, {"unknown_weight": 0.1})
    assert enqueue_trial(study, SPACE, {"unknown_weight": 0.1}, raise_total=True) == 2
    assert study.user_attrs["target"] == 3
    assert [leased(study).number for _ in range(3)] == [0, 1, 2]
    assert isinstance(claim(study), NothingToClaim)


def test_raising_the_total_for_one_trial_leaves_an_interrupted_addition_as_it_is(storage):
    study = define(storage, num_trials=1)
    set_target(study, more_trials=1)
    for number in (1, 2):
        assert enqueue_trial(study, SPACE, {"unknown_weight": 0.1}, raise_total=True) == number
    assert set_target(study, more_trials=1) == 3
    study.enqueue_trial({"unknown_weight": 0.2})  # by Optuna, which knows no total
    assert enqueue_trial(study, SPACE, {"unknown_weight": 0.1}, raise_total=True) == 4
    assert study.user_attrs["target"] == 5


@pytest.mark.parametrize("pruner", ["asha", "none"])
def test_the_total_of_epochs_ends_the_study(storage, tmp_path, pruner, url, caplog):
    given = {"pruner": pruner, "sampler": "random", "min_resource": 1, "max_epochs": 8}
    given |= {"num_trials": 50, "max_epochs_total": 21}
    study = define(storage, **given)
    work_on(study, tmp_path, **given)
    num_epochs = [len(trial.intermediate_values) for trial in study.trials]
    assert sum(num_epochs[:-1]) < 21 <= sum(num_epochs) < 21 + 8
    assert any(trial.state is TrialState.COMPLETE for trial in study.trials)
    assert study_status(study).is_finished
    check_exact(url, len(num_epochs), 8)
    work_on(study, tmp_path, **given)
    assert len(study.trials) == len(num_epochs)
    reached = [message for message in caplog.messages if "max_epochs_total" in message]
    assert reached == [f"study.max_epochs_total is reached: the study's total is {len(num_epochs)} trials, not 50"]


def test_without_epochs_left_the_best_paused_trial_completes_a_study_that_has_none(storage):
    study, other = define(storage, num_trials=3, max_epochs_total=3), define(storage, name="other")
    storage.write_trial(leased(other), TrialWrite(steps={0: 0.9}, values=[0.9], state=TrialState.COMPLETE))
    storage.write_trial(leased(other), TrialWrite(user_attrs={CURVE: [[0, 0.9]]}))
    leases = [leased(study, **RULES) for _ in range(2)]
    pause(storage, leases[0], 0.4)
    storage.write_trial(leases[1], TrialWrite(user_attrs={CURVE: [[0, 0.1]]}))
    assert storage.read(lambda connection: count_epochs(connection, study._study_id)) == 2
    pause(storage, leases[1], 0.2)
    best = claim(study, **RULES)
    assert (best.lease.number, best.from_pause, best.pruned) == (0, True, (1,))
    storage.write_trial(best.lease, TrialWrite(values=[0.4], state=TrialState.COMPLETE))
    assert claim(study, **RULES) == NothingToClaim(2, 2, {})


def test_without_epochs_left_no_trial_is_promoted_in_a_study_that_has_a_complete_one(storage):
    study = define(storage, num_trials=3, max_epochs_total=3)
    leases = [leased(study, **RULES) for _ in range(2)]
    storage.write_trial(leases[0], TrialWrite(steps={0: 0.1, 1: 0.1}))
    pause(storage, leases[1], 0.4)
    assert isinstance(claim(study, **RULES), NothingToClaim)  # since the other may complete
    storage.write_trial(leases[0], TrialWrite(values=[0.1], state=TrialState.COMPLETE))
    assert claim(study, **RULES) == NothingToClaim(2, 2, {}, (1,))


def test_a_raised_limit_of_epochs_holds_for_workers_with_the_old_one(storage, url, tmp_path):
    given = {"pruner": "none", "sampler": "random", "num_trials": 6}
    study = define(storage, max_epochs_total=12, tree={"study": {"max_epochs_total": 12}}, **given)
    work_on(study, tmp_path, max_epochs_total=12, **given)
    assert study_counts(study).target == 3
    assert set_target(study, num_trials=6, max_epochs_total=1000) == 6
    others: list[int] = []

    def run(running):
        if not others:
            other = define(open_storage(storage_settings(url), tmp_path, create=False), max_epochs_total=12, **given)
            others.append(work_on(other, tmp_path, max_epochs_total=12, **given).num_finished)
        return objective(running)

    work_on(study, tmp_path, run, **given)
    counts = study_counts(study)
    assert (others, counts.num_finished, counts.target, counts.max_epochs_total) == ([5], 6, 6, 1000)
    assert StudyRecord("toy", study.user_attrs).settings()["study"]["max_epochs_total"] == 1000


def test_a_new_limit_of_epochs_is_stored_with_the_total_or_not_at_all(storage, caplog):
    study = define(storage, num_trials=3)
    assert set_target(study, max_epochs_total=40) == 3
    assert "lowering the total of study toy, which all its workers share, from no limit to 40 epochs" in caplog.text
    storage.write_trial(leased(study), DONE)
    leased(study)
    with pytest.raises(ConfigurationError, match="cannot be lower, got 1"):
        set_target(study, num_trials=1, max_epochs_total=30)
    assert [set_target(study, **change) for change in ({}, {"more_trials": 1})] == [3, 4]
    assert study_counts(study).max_epochs_total == 40
    set_target(study, max_epochs_total=30)
    assert "from 40 to 30 epochs" in caplog.text
    caplog.clear()
    set_target(study, max_epochs_total=50)
    set_target(study, max_epochs_total=None)
    assert "lowering" not in caplog.text
    assert study_counts(study).max_epochs_total is None


def test_an_unchanged_limit_of_epochs_of_a_file_undoes_no_other_given_since(storage, logged):
    study = define(storage, max_epochs_total=12, tree={"study": {"max_epochs_total": 12}})

    def restart(max_epochs_total):
        set_target(study, num_trials=5, max_epochs_total=max_epochs_total, lenient=True, lenient_epochs=True)
        return study_counts(study).max_epochs_total

    set_target(study, more_trials=4, max_epochs_total=1000)
    assert [restart(limit) for limit in (12, 30, 30)] == [1000, 30, 30]
    kept = "study toy keeps its total of epochs, {}; it was changed after these settings gave {}"
    assert [line for line in logged.messages if "keeps its total of epochs" in line] == [kept.format(1000, 12)]
    for limit, named in ((5, 5), (None, "no limit")):
        set_target(study, max_epochs_total=limit)
        assert [restart(30), restart(30)] == [limit, limit]
        assert logged.messages.count(kept.format(named, 30)) == 2
    assert [restart(limit) for limit in (None, 12)] == [None, 12]
    set_target(study, max_epochs_total=30, lenient_epochs=True)
    set_target(study, num_trials=5)
    assert study_counts(study).max_epochs_total == 30


def test_a_study_of_an_earlier_version_keeps_the_limit_of_epochs_among_its_settings(storage, tmp_path, caplog):
    given = {"pruner": "none", "num_trials": 5}
    study = define(storage, tree={"study": {"max_epochs_total": 7}}, **given)
    is_limit = STUDY_ATTRIBUTES.c.key == MAX_EPOCHS_TOTAL
    storage.write(lambda connection: connection.execute(sa.delete(STUDY_ATTRIBUTES).where(is_limit)))
    work_on(study, tmp_path, **given)
    assert study_counts(study).num_finished == 2
    set_target(study, num_trials=3, max_epochs_total=6)
    assert "from 7 to 6 epochs" in caplog.text
    set_target(study, num_trials=3, max_epochs_total=9)
    work_on(study, tmp_path, **given)
    assert study_counts(study).num_finished == 3


def test_an_addition_that_the_limit_of_epochs_has_ended_is_not_continued(storage, tmp_path):
    given = {"pruner": "none", "num_trials": 10, "sampler": "random"}
    study = define(storage, max_epochs_total=12, tree={"study": {"num_trials": 10}}, **given)
    work_on(study, tmp_path, **given)
    assert set_target(study, more_trials=2) == 5
    work_on(study, tmp_path, **given)
    assert study_counts(study).target == 3
    assert set_target(study, more_trials=2, max_epochs_total=1000) == 5
    work_on(study, tmp_path, **given)
    assert study_counts(study).num_finished == 5
    set_target(study, more_trials=4, max_epochs_total=20)
    assert isinstance(claim(study), NothingToClaim)
    assert set_target(study, num_trials=10, max_epochs_total=1000, lenient=True) == 10  # a file raises both
