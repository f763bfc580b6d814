"""Trials that pause at rungs and are promoted by claims, on both databases."""

import itertools
import math
import random
from collections import defaultdict

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from csi_job.errors import ConfigurationError, StalledError, StopRequestedError
from csi_job.report.page.answer import state
from csi_job.report.settings_file import commands
from csi_job.report.study_view import view_study
from csi_job.storage.attributes import (
    BRACKET,
    CONSTRAINT,
    MIN_RESOURCE,
    PAUSED,
    REDUCTION_FACTOR,
    outcome_of,
    seconds_of,
)
from csi_job.storage.claim import Claim, NothingToClaim
from csi_job.storage.optuna_private import hyperband_bracket
from csi_job.storage.rungs import Rungs, Standing, standings
from csi_job.storage.tables import LEASES
from csi_job.storage.trial_rows import TrialWrite, add_trial
from csi_job.study.record import read_record
from csi_job.study.status import study_status
from csi_job.study.studies import enqueue_trial
from csi_job.study.target import set_target
from csi_job.study.worker import WorkerOptions
from tests.support.reader import check_exact
from tests.support.studies import SPACE, claim, define, leased, objective, pause, storage_settings, value_at, work_on

RULES = {"rungs": Rungs(1, 2)}
ASHA = {"pruner": "asha", "sampler": "random", "min_resource": 1, "max_epochs": 8}


def outcomes(study):
    return [outcome_of(trial) for trial in study.get_trials(deepcopy=False)]


def asha(xs, factor, max_epochs, rungs=(1, 2, 4)):
    """What one worker computes of trials with these final values, in order, and which are complete (Li et al.)."""
    reached = defaultdict(list)
    paused = {}
    new, computed, complete = list(range(len(xs))), [], set()

    def best(rung, at_least):
        ranked = sorted(reached[rung], key=lambda trial: -xs[trial])
        return ranked[: max(len(ranked) // factor, at_least)]

    while True:
        promoted = [
            trial
            for rung in sorted(reached, reverse=True)
            for trial in best(rung, at_least=int(not new))
            if paused.get(trial) == rung
        ]
        if not promoted and not new:
            return computed, complete
        trial = promoted[0] if promoted else new.pop(0)
        for epoch in range(paused.pop(trial, 0), max_epochs):
            computed.append((trial, epoch))
            if (rung := epoch + 1) in rungs:
                reached[rung].append(trial)
                if trial not in best(rung, at_least=0):
                    paused[trial] = rung
                    break
        else:
            complete.add(trial)


@pytest.mark.parametrize("num_trials", [1, 3, 24])
def test_one_worker_computes_what_asha_does(storage, tmp_path, num_trials, url):
    study = define(storage, num_trials=num_trials, **ASHA)
    seen = []

    def watch(_):
        seen.append((study_status(study).num_finished, len([*tmp_path.rglob("*.pt")])))

    watched = WorkerOptions(own_process=False, on_trial_finished=watch)
    work_on(study, tmp_path, num_trials=num_trials, options=watched, **ASHA)
    assert (seen[0], seen[-1]) == ((0, 1), (num_trials, 0))  # the first was paused, the last claim pruned the rest
    xs = [trial.params["unknown_weight"] for trial in study.trials]
    computed, complete = asha(xs, 2, 8)
    log = [tuple(map(int, line.split())) for line in (tmp_path / "computed.log").read_text().splitlines()]
    assert log == computed
    assert {trial.number for trial in study.trials if trial.state is TrialState.COMPLETE} == complete
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(
        trial.value == value_at(trial.params["unknown_weight"], trial.last_step)
        for trial in study.trials
        if trial.state is TrialState.PRUNED
    )
    assert not [*tmp_path.rglob("*.pt")]
    runs = sorted(run for trial in study.trials for run in trial.user_attrs.get("runs", ()))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(runs))
    assert len(runs) > num_trials // 2
    check_exact(url, num_trials, 8)


def test_what_another_program_stores_under_the_names_of_rungs_is_not_read(storage):
    study = define(storage, num_trials=9, **ASHA)
    pause(storage, leased(study), 0.1)
    for value in (None, "x", -1, 0.5, 10**30, [1], {"a": 1}):
        attributes = dict.fromkeys((BRACKET, MIN_RESOURCE, REDUCTION_FACTOR), value)
        study.add_trial(create_trial(value=0.9, intermediate_values={0: 0.9}, user_attrs=attributes))
    [found] = storage.read(lambda connection: standings(connection, study._study_id, [0], Rungs(1, 2)))
    assert (found.place, found.num_rivals, found.reduction_factor) == (8, 8, 2)


def test_hyperband_pauses_each_trial_at_the_rungs_of_its_bracket(storage, tmp_path, url):
    given = ASHA | {"pruner": "hyperband", "num_trials": 24}
    study = define(storage, **given)
    work_on(study, tmp_path, **given)
    brackets = [hyperband_bracket(optuna.pruners.HyperbandPruner(1, 8, 2), study, trial) for trial in study.trials]
    assert [trial.user_attrs["bracket"] for trial in study.trials] == brackets
    assert {*brackets} == {0, 1, 2, 3}
    for bracket, trial in zip(brackets, study.trials, strict=True):
        num_epochs = len(trial.intermediate_values)
        if trial.state is TrialState.PRUNED:
            assert num_epochs in {2**exponent for exponent in range(bracket, 3)}
        else:
            assert num_epochs == 8
    computed = (tmp_path / "computed.log").read_text().splitlines()
    assert len(computed) == len({*computed})
    check_exact(url, 24, 8)


def test_running_trials_are_ranked_by_their_best_value_among_all_that_reached_the_rung(storage):
    """Among those with the same rungs; the trials of another study, one in four, are none of them."""
    study, other, draws = define(storage), define(storage, name="other"), random.Random(5)
    study_id, trials = study._study_id, []
    for _ in range(400):
        state = draws.choice([TrialState.RUNNING] * 2 + [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
        values = [draws.choice([0.1, 0.2, 0.3, 0.4, math.nan]) for _ in range(draws.randint(0, 5))]
        given = {"bracket": draws.randint(-1, 2), "min_resource": draws.choice([-1, 3]), "reduction_factor": 2}
        if given["min_resource"] == 3:
            given["reduction_factor"] = draws.choice([2, 4])
        attributes = {name: number for name, number in given.items() if number >= 0}
        violated = {"system_attrs": {CONSTRAINT: 1.0}} if draws.random() < 0.1 else {}
        trial = create_trial(
            state=state,
            value=0.0 if state is TrialState.COMPLETE else None,
            intermediate_values=dict(enumerate(values)),
            user_attrs=attributes,
            **violated,
        )
        place_id = study_id if (is_own := draws.random() < 0.75) else other._study_id
        trial_id = storage.write(lambda connection, at=place_id, trial=trial: add_trial(connection, at, trial))
        rungs = Rungs(abs(given["min_resource"]), given["reduction_factor"], max(given["bracket"], 0))
        trials += [(trial_id, state, values, rungs, bool(violated))] if is_own else []

    def place(trial_id, step):
        curve = next(values for one, _, values, *_ in trials if one == trial_id)
        return -max(value for value in curve[: step + 1] if not math.isnan(value)), trial_id

    expected = []
    for step, bracket in itertools.product((4, 2, 0), (2, 1, 0)):
        same = []
        for first, factor in ((1, 2), (3, 2), (3, 4)):
            rivals = [
                (trial_id, state, values[step])
                for trial_id, state, values, own, violated in trials
                if len(values) > step and own == Rungs(first, factor, bracket) and not violated
                if state is not TrialState.FAIL and not math.isnan(values[step])
            ]
            rivals.sort(key=lambda rival: place(rival[0], step))
            same += [
                Standing(trial_id, step, value, place, len(rivals), factor)
                for place, (trial_id, state, value) in enumerate(rivals, start=1)
                if state is TrialState.RUNNING
            ]
        expected += sorted(same, key=lambda standing: (standing.place, standing.trial_id))
    assert len(expected) > 100
    assert storage.read(lambda connection: standings(connection, study_id, [0, 2, 4], Rungs(1, 2))) == expected


@pytest.mark.parametrize(("place", "best_of"), [(1, 2), (2, 4), (3, 6)])
def test_one_of_so_many_rivals_is_promoted_and_at_the_end_at_least_one(place, best_of):
    ranked = [Standing(0, 0, 0.5, place, num_rivals, 2) for num_rivals in (best_of - 1, best_of)]
    assert [standing.is_promoted() for standing in ranked] == [False, True]
    assert [standing.is_promoted(at_least=1) for standing in ranked] == [place == 1, True]
    assert [ranked[0].is_beaten(target) for target in (1, best_of - 1, best_of)] == [place > 1, place > 1, False]


def test_an_orphan_comes_first_then_a_promoted_trial_the_waiting_and_new_ones(storage):
    study = define(storage, num_trials=10)
    leases = [leased(study, **RULES) for _ in range(4)]
    pause(storage, leases[0], 0.2)
    pause(storage, leases[1], 0.1, 0.3)
    pause(storage, leases[2], 0.4)
    storage.release(leases[3], TrialWrite(), limit_s=0)
    enqueue_trial(study, SPACE, {"unknown_weight": 0.5})
    assert outcomes(study) == ["paused", "paused", "paused", "running", "waiting"]
    assert study_status(study).num_paused == 3
    assert state(view_study(study)) == "0 of 10 trials finished; 1 running now; 3 paused."
    with pytest.raises(ConfigurationError, match="0 finished and 4 running or paused trials"):
        set_target(study, num_trials=3)
    claims = [claim(study, **RULES) for _ in range(4)]
    assert all(isinstance(claimed, Claim) for claimed in claims)
    # Of the three that reached epoch 1, 1 is promoted: trial 2. Trial 1 is alone in the second rung.
    found = [(made.lease.number, made.lease.attempt, made.from_pause) for made in claims if isinstance(made, Claim)]
    assert found == [(3, 2, False), (2, 2, True), (4, 1, False), (5, 1, False)]
    assert study.get_trials()[2].state is TrialState.RUNNING


def test_without_a_pausing_pruner_a_paused_trial_waits_for_the_end_and_is_then_pruned(storage):
    study = define(storage, num_trials=3)
    leases = [leased(study) for _ in range(3)]
    pause(storage, leases[0], 0.2, 0.1)
    waits = claim(study)
    assert [*waits.running] == [leases[1].trial_id, leases[2].trial_id]
    storage.write_trial(leases[1], TrialWrite(values=[0.5], state=TrialState.COMPLETE))
    storage.write_trial(leases[2], TrialWrite(values=[0.5], state=TrialState.COMPLETE))
    enqueue_trial(study, SPACE, {"unknown_weight": 0.5}, raise_total=True)
    waiting = claim(study)
    assert (waiting.lease.number, waiting.pruned) == (3, ())
    storage.write_trial(waiting.lease, TrialWrite(values=[0.5], state=TrialState.COMPLETE))
    end = claim(study)
    assert end == NothingToClaim(4, 4, {}, (0,))
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.PRUNED, 0.1)
    assert study.trials[0].user_attrs["reason"] == "paused after epoch 2, where others were better"


def test_a_trial_that_runs_is_not_paused_whatever_another_program_stored(storage):
    study = define(storage, num_trials=2)
    storage.write_trial(leased(study), TrialWrite(values=[0.5], state=TrialState.COMPLETE))
    study.enqueue_trial({}, user_attrs={PAUSED: 1})
    lease = leased(study)
    assert [*claim(study).running] == [lease.trial_id]


def test_a_paused_trial_that_can_never_be_promoted_is_pruned_at_once(storage):
    study = define(storage, num_trials=4)
    leases = [leased(study, **RULES) for _ in range(3)]
    for lease, value in zip(leases, (0.1, 0.2, 0.3), strict=True):
        pause(storage, lease, value)
    claimed = claim(study, **RULES)  # at most 2 of 4 are promoted
    assert (claimed.lease.number, claimed.pruned) == (2, (0,))
    assert study_status(study).num_paused == 1


@pytest.mark.parametrize("is_enqueued", [False, True])
def test_a_claim_of_another_trial_names_those_that_it_pruned(storage, is_enqueued):
    study = define(storage, num_trials=4)
    leases = [leased(study, **RULES) for _ in range(3)]
    for lease, value in zip(leases, (0.1, 0.2), strict=False):
        pause(storage, lease, value)
    storage.write_trial(leases[2], TrialWrite(steps={0: 0.3}))  # and runs on
    if is_enqueued:
        enqueue_trial(study, SPACE, {"unknown_weight": 0.5})
    claimed = claim(study, **RULES)
    assert (claimed.lease.number, claimed.from_pause, claimed.pruned) == (3, False, (0,))


def test_more_trials_compete_with_those_of_before(storage, tmp_path):
    study = define(storage, num_trials=8, **ASHA)
    work_on(study, tmp_path, num_trials=8, **ASHA)
    before = [trial.intermediate_values for trial in study.trials]
    set_target(study, more_trials=4)
    work_on(study, tmp_path, num_trials=8, **ASHA)
    assert [trial.intermediate_values for trial in study.trials[:8]] == before
    first = sorted((trial.intermediate_values[0] for trial in study.trials[:8]), reverse=True)
    for trial in study.trials[8:]:
        assert len(trial.intermediate_values) == 1 or trial.intermediate_values[0] > first[5]


def test_other_rungs_are_another_phase_whose_trials_compete_among_themselves(storage, tmp_path, url):
    study = define(storage, num_trials=8, **ASHA)
    work_on(study, tmp_path, num_trials=8, **ASHA)
    before = [trial.intermediate_values for trial in study.trials]
    set_target(study, more_trials=8)
    later = ASHA | {"min_resource": 3}
    work_on(study, tmp_path, num_trials=8, **later)
    assert [trial.intermediate_values for trial in study.trials[:8]] == before
    xs = [trial.params["unknown_weight"] for trial in study.trials]
    log = [tuple(map(int, line.split())) for line in (tmp_path / "computed.log").read_text().splitlines()]
    second = [(number + 8, epoch) for number, epoch in asha(xs[8:], 2, 8, (3, 6))[0]]
    assert log == asha(xs[:8], 2, 8)[0] + second
    view = view_study(study)
    assert [phase.pruning for phase in view.phases] == ["asha (1, 2, 4, …)", "asha (3, 6, 12, …)"]
    assert commands(view, "f")[1].startswith("CSI_JOB_STUDY__MIN_RESOURCE=3 CSI_JOB_STUDY__REDUCTION_FACTOR=2 csi-job ")
    record = read_record(storage_settings(url), tmp_path, "toy")
    assert record.settings()["study"]["min_resource"] == 3


def test_a_paused_trial_keeps_its_rungs_and_its_factor(storage, tmp_path):
    study = define(storage, num_trials=2, **ASHA)
    work_on(study, tmp_path, num_trials=2, options=WorkerOptions(own_process=False, may_add=False), **ASHA)
    assert [len(trial.intermediate_values) for trial in study.trials] == [1]
    work_on(study, tmp_path, num_trials=2, **ASHA | {"min_resource": 3, "reduction_factor": 4})
    [first, second] = study.trials
    assert (first.user_attrs["min_resource"], first.user_attrs["reduction_factor"]) == (1, 2)
    assert (second.user_attrs["min_resource"], second.user_attrs["reduction_factor"]) == (3, 4)
    assert [len(trial.intermediate_values) for trial in study.trials] == [8, 8]  # each alone at its rungs
    ends = [first.user_attrs["runs"], second.user_attrs["runs"]]
    assert [len(runs) for runs in ends] == [4, 2]  # paused at 1, 2, 4; paused at 3


def test_the_time_until_a_promoted_trial_was_released_is_kept(storage, tmp_path):
    study = define(storage, num_trials=1, **ASHA)

    def stops_once_promoted(running):
        if running.curve:
            running.stop.request(15)
        return objective(running)

    with pytest.raises(StopRequestedError):
        work_on(study, tmp_path, stops_once_promoted, num_trials=1, **ASHA)
    [paused, released] = study.trials[0].user_attrs["runs"]
    assert paused[0] <= paused[1] <= released[0] <= released[1]

    def dies_after_an_epoch(running):
        running.report(1, value_at(running.params.unknown_weight, 1))
        raise StalledError("it dies here")

    with pytest.raises(StalledError):
        work_on(study, tmp_path, dies_after_an_epoch, num_trials=1, **ASHA)
    assert [end is None for _, end, _ in study.trials[0].user_attrs["runs"]] == [False, False, False, True]
    storage.write(lambda connection: connection.execute(sa.update(LEASES).values(lease_s=0.0)))
    work_on(study, tmp_path, num_trials=1, **ASHA)
    runs = study.trials[0].user_attrs["runs"]
    # Then paused at 1 again; the run that was killed does not count; paused at 2 and 4, and complete.
    assert (len(runs), runs[:2]) == (6, [paused, released])
    assert seconds_of(study.trials[0]) == sum(end - start for start, end, _ in runs)


def test_a_pause_survives_a_signal_while_it_is_stored(storage, tmp_path, monkeypatch, logged):
    study = define(storage, num_trials=2, **ASHA)
    write_trial = storage.write_trial

    def interrupted(lease, write, *args, **changes):
        if PAUSED in write.user_attrs and changes.get("limit_s") is None:
            raise StopRequestedError(15)
        return write_trial(lease, write, *args, **changes)

    monkeypatch.setattr(storage, "write_trial", interrupted)
    with pytest.raises(StopRequestedError):
        work_on(study, tmp_path, num_trials=2, **ASHA)
    assert outcomes(study) == ["paused"]
    assert logged.messages[-1] == "trial 0 paused"  # and not released, for the next worker to resume
    monkeypatch.undo()
    work_on(study, tmp_path, num_trials=2, **ASHA)
    assert sorted(outcomes(study)) == ["complete", "pruned"]


def test_a_worker_that_dies_before_it_pauses_leaves_the_decision_to_the_next(storage, tmp_path):
    study = define(storage, num_trials=3, **ASHA)

    def dies(running):
        running.end_if_behind = lambda: running.stop.request(15) or running.check()
        return objective(running)

    with pytest.raises(StopRequestedError):
        work_on(study, tmp_path, dies, num_trials=3, **ASHA)
    assert outcomes(study) == ["running"]
    work_on(study, tmp_path, num_trials=3, **ASHA)
    xs = [trial.params["unknown_weight"] for trial in study.trials]
    log = [tuple(map(int, line.split())) for line in (tmp_path / "computed.log").read_text().splitlines()]
    assert log == asha(xs, 2, 8)[0]


def test_a_trial_without_its_checkpoint_is_promoted_from_the_start(storage, tmp_path):
    study = define(storage, num_trials=2, **ASHA)
    work_on(study, tmp_path / "a", num_trials=2, options=WorkerOptions(own_process=False, may_add=False), **ASHA)
    assert outcomes(study) == ["paused"]
    assert len([*tmp_path.rglob("*.pt")]) == 1
    work_on(study, tmp_path / "b", num_trials=2, **ASHA)
    assert sorted(outcomes(study)) == ["complete", "pruned"]
    for trial in study.trials:
        x = trial.params["unknown_weight"]
        assert trial.intermediate_values == {n: value_at(x, n) for n in range(len(trial.intermediate_values))}


def test_optuna_reads_a_paused_trial_as_a_running_one_and_samplers_as_a_pruned_one(storage, tmp_path):
    study = define(storage, num_trials=2, **ASHA)
    work_on(study, tmp_path, num_trials=2, options=WorkerOptions(own_process=False, may_add=False), **ASHA)
    [plain] = optuna.load_study(study_name="toy", storage=storage.migration_url()).trials
    assert (plain.state, plain.intermediate_values) == (TrialState.RUNNING, {0: 0.25})
    assert plain.user_attrs["paused"] == plain.user_attrs["attempt"] == 1
    assert [trial.state for trial in study._get_trials(states=(TrialState.PRUNED,))] == [TrialState.PRUNED]
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
