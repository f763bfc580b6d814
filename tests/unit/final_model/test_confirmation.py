import itertools
import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from safetensors.torch import load_file

from csi_job.cache.dataset import Cache
from csi_job.config import Settings
from csi_job.errors import InfeasibleTrialError
from csi_job.final_model.candidates import Candidate, CandidateResult, choose_winner
from csi_job.final_model.confirmation import RESULT, Confirmation, results_of
from csi_job.final_model.seeds import SeedResult, SeedTrainer
from csi_job.final_model.train import FinalTraining
from csi_job.search import Search
from csi_job.storage.attributes import ENDED
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage, storage_of
from csi_job.study.confirmation import TRAINING, Training, open_confirmation, training_of
from csi_job.study.definition import define_study
from csi_job.study.record import read_record
from csi_job.study.settings import StudySettings
from csi_job.study.status import study_status
from csi_job.study.studies import delete_study, list_studies
from csi_job.study.worker import WorkerOptions
from csi_job.study_settings import definition_of
from csi_job.terminal.live import live_study
from csi_job.work_folder import WorkFolder
from tests.support.processes import Process, preload, wait_until
from tests.support.reader import StudyReader
from tests.unit.final_model.conftest import (
    BASELINE,
    SMALL,
    TRIAL,
    diverging,
    kept,
    recipe,
    request_of,
    stored_study,
    study_of,
)

preload("tests.unit.final_model.test_confirmation")

RATES = (1e-3, 3e-3, 5e-3)
TRIALS = ((SMALL, 0.5), ({"learning_rate": 3e-3}, 0.4), ({"learning_rate": 5e-3}, 0.3))


@pytest.fixture
def confirmation(trainer):
    candidates = [Candidate(recipe(learning_rate=rate), number) for number, rate in enumerate(RATES)]
    return Confirmation(candidates, BASELINE, (1, 2, 3), trainer)


def done(training: Training, val_f1: float | None, gflops: float = 1.0) -> FrozenTrial:
    attributes = {TRAINING: asdict(training)}
    if val_f1 is None:
        return create_trial(state=TrialState.PRUNED, user_attrs=attributes | {"reason": "out of memory"})
    result = asdict(kept(training.seed, val_f1, gflops))
    return create_trial(value=val_f1, user_attrs=attributes | {RESULT: result})


def after(confirmation: Confirmation, trials: Sequence[FrozenTrial] = ()) -> list[Training]:
    return confirmation.trainings(*results_of(trials))


def names(trainings) -> list[str]:
    return [str(training) for training in trainings]


def test_the_leader_comes_first_then_the_baseline_then_a_seed_of_each_other(confirmation):
    assert names(after(confirmation)) == [
        *("trial 0, seed 1", "trial 0, seed 2", "trial 0, seed 3"),
        *("baseline, seed 1", "baseline, seed 2", "baseline, seed 3"),
        *("trial 1, seed 1", "trial 2, seed 1", "trial 1, seed 2", "trial 2, seed 2"),
        *("trial 1, seed 3", "trial 2, seed 3"),
    ]


@pytest.mark.parametrize(("second", "is_dropped"), [(0.05, True), (0.10, False), (0.11, False)])
def test_a_candidate_is_dropped_when_an_f1_of_1_would_not_save_it(confirmation, second, is_dropped):
    values = {"trial 0": (0.5, 0.5, 0.5), "trial 1": (0.4, second), "trial 2": (0.9,)}  # 0.4 + 0.1 + 1 = 1.5
    trials = [
        done(training, values[training.name][training.seed - 1])
        for training in after(confirmation)
        if training.seed <= len(values.get(training.name, ()))
    ]
    left = {training.name for training in after(confirmation, trials)}
    assert left == {"trial 0", "trial 2", "baseline"} | (set() if is_dropped else {"trial 1"})
    assert "trial 1" in names(after(replace(confirmation, prefer_cheap=True), trials))[-2]  # no bound with cost


def test_a_recipe_that_cannot_be_trained_is_left_out_baseline_or_candidate(confirmation):
    trials = [done(training, None) for training in after(confirmation) if training.seed == 2]
    assert {training.name for training in after(confirmation, trials[:1])} == {"baseline", "trial 1", "trial 2"}
    assert {training.name for training in after(confirmation, trials[1:2])} == {"trial 0", "trial 1", "trial 2"}
    assert after(confirmation, [done(training, None) for training in after(confirmation)]) == []


def test_the_baseline_waits_until_the_winners_epochs_are_certain(confirmation):
    first, second, third = confirmation.candidates
    longer = replace(third, recipe=replace(third.recipe, max_epochs=9))
    confirmation = replace(confirmation, candidates=(first, second, longer))
    trainings = after(confirmation)
    assert "baseline" not in {training.name for training in trainings}
    winning = [done(training, 0.9 if training.name == "trial 2" else 0.5) for training in trainings]
    baseline = [training for training in after(confirmation, winning) if training.name == "baseline"]
    assert [training.max_epochs for training in baseline] == [9, 9, 9]


@given(st.data())
def test_whatever_the_order_of_the_trainings_nobody_who_would_win_is_dropped(data):
    candidates = [Candidate(recipe(learning_rate=rate), number) for number, rate in enumerate(RATES)]

    class Digests(SeedTrainer):
        def recipe_digest(self, recipe):
            return str(recipe.params.learning_rate)

    trainer = Digests(Path(), None, TRIAL)
    confirmation = Confirmation(candidates, BASELINE, (1, 2), trainer)
    values = data.draw(st.lists(st.floats(0, 1), min_size=6, max_size=6))
    f1 = dict(zip(itertools.product(map(str, RATES), (1, 2)), values, strict=True))
    trials = []
    while left := [t for t in after(confirmation, trials) if t.key not in {training_of(x).key for x in trials}]:
        training = data.draw(st.sampled_from(left))
        trials.append(done(training, f1.get(training.key, 0.5)))

    def results(found):
        of = [(c, [found.get((str(c.recipe.params.learning_rate), seed)) for seed in (1, 2)]) for c in candidates]
        return [CandidateResult(c, tuple(kept(1, value) for value in values)) for c, values in of if None not in values]

    trained = {training_of(trial).key: trial.value for trial in trials}
    expected, chosen = (choose_winner(results(found), prefer_cheap=False) for found in (f1, trained))
    assert chosen.candidate == expected.candidate


def request(work: Path, cache_folder: Path, trial=TRIAL, **settings) -> FinalTraining:
    study = stored_study(work, cache_folder, *TRIALS)
    made = request_of(work, cache_folder, study, trial=trial, **({"max_epochs": 3} | settings))
    record = read_record(StorageSettings(), work, "s")
    return replace(made, record=record, options=WorkerOptions(own_process=False))


def final(work: Path, cache_folder: Path, **changes: Any) -> None:
    """What a process does; several with as many threads as cores would starve each other."""
    torch.set_num_threads(1)
    replace(request(work, cache_folder), **changes).run()


def start(*arguments: Any, **changes: Any) -> Process:
    return Process(partial(final, **changes), *arguments)


def choice(work: Path) -> tuple[list, dict]:
    """What was chosen, and its weights."""
    content = json.loads(WorkFolder(work).optimized_params("s").read_text())
    card = json.loads(WorkFolder(work).final("s").optimized_model.with_suffix(".json").read_text())
    chosen = [content[key] for key in ("trial", "value", "std", "seeds", "params")]
    chosen += [card["seeds"], card["kept_seed"], card["validation"]]
    models = WorkFolder(work).final("s")
    weights = {path.name: load_file(path) for path in (models.optimized_model, models.baseline_model)}
    return chosen, weights


def assert_same(work: Path, other: Path) -> None:
    (ours, our_weights), (theirs, their_weights) = choice(work), choice(other)
    assert ours == theirs
    for name, state in their_weights.items():
        assert all(torch.equal(our_weights[name][key], tensor) for key, tensor in state.items())


@pytest.fixture(scope="module")
def alone(cache_folder, tmp_path_factory):
    """The work folder of one undisturbed process."""
    work = tmp_path_factory.mktemp("alone ü")
    assert start(work, cache_folder).join(240) == 0
    return work


def test_the_trainings_are_trials_of_a_study_beside_it_with_their_curves(alone, cache_folder):
    study = stored_study(alone, cache_folder, *TRIALS)
    trials = open_confirmation(study).get_trials()
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    trainer = SeedTrainer(WorkFolder(alone).candidates("s"), Cache.open(cache_folder), TRIAL)
    assert {training_of(trial).name for trial in complete} >= {"trial 0", "baseline"}
    for trial in complete:
        training = training_of(trial)
        trained = recipe(training.max_epochs, learning_rate=training.params["learning_rate"])
        finished = trainer.finished(trained, training.seed)
        assert trial.value == finished.val_f1 == SeedResult.of(trial.user_attrs[RESULT]).val_f1
        assert tuple(trial.intermediate_values.values()) == finished.curve
    assert [trial.number for trial in study.get_trials()] == [0, 1, 2, 3]  # the baseline and the three
    assert not list((alone / "checkpoints").rglob("*.pt"))


def test_the_results_equal_those_of_a_training_without_a_database(alone, cache_folder, tmp_path):
    request(tmp_path, cache_folder)
    assert start(tmp_path, cache_folder, record=None).join(240) == 0  # as where the study is not on this data
    assert not (tmp_path / "checkpoints").exists()
    assert_same(tmp_path, alone)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_processes_that_share_the_trainings_choose_the_same(alone, cache_folder, tmp_path, number):
    request(tmp_path, cache_folder)
    processes = [start(tmp_path, cache_folder) for _ in range(3)]
    reader = StudyReader(f"sqlite:///{tmp_path}/studies.db", "s/confirmation")
    for victim in range(3):
        num_epochs = sum(map(len, reader.curves().values()))
        wait_until(
            lambda before=num_epochs: (
                sum(map(len, reader.curves().values())) > before
                or all(process.returncode is not None for process in processes)
            )
        )
        processes[victim].send_signal(number)
        processes[victim].join(120)
        processes[victim] = start(tmp_path, cache_folder)
    assert [process.join(240) for process in processes] == [0, 0, 0]
    assert_same(tmp_path, alone)
    trials = open_confirmation(stored_study(tmp_path, cache_folder, *TRIALS)).get_trials()
    finished = [training_of(trial).key for trial in trials if trial.state is not TrialState.FAIL]
    assert len(finished) == len(set(finished))  # each once
    assert not [trial for trial in trials if not trial.state.is_finished()]


def test_a_training_whose_files_are_gone_is_done_again_without_a_claim(alone, cache_folder, tmp_path):
    work = Path(shutil.copytree(alone, tmp_path / "copy"))
    shutil.rmtree(work / "models" / "final")
    shutil.rmtree(work / "models" / "candidates")
    for path in (work / "models").glob("*_model.*"):
        path.unlink()
    assert start(work, cache_folder).join(240) == 0
    assert_same(work, alone)


def test_workers_of_a_search_leave_nothing_to_train(cache_folder, tmp_path, monkeypatch):
    shared = request(tmp_path, cache_folder, num_candidates=2, num_seeds=1, max_epochs=1)
    of_the_search = StudySettings(pruner="asha", max_epochs_total=1)
    replace(shared, worker=of_the_search).share_trainings(waits=False)
    monkeypatch.setattr(SeedTrainer, "keep", None)
    assert shared.run().is_new


def test_a_model_that_added_trials_do_not_change_is_up_to_date_for_status_too(cache_folder, tmp_path):
    shared = request(tmp_path, cache_folder, num_candidates=1, num_seeds=1, max_epochs=1)
    shared.run()
    shared.study.add_trial(create_trial(state=TrialState.PRUNED))
    assert study_status(shared.study).confirmation.planned_for == 3
    again = request(tmp_path, cache_folder, num_candidates=1, num_seeds=1, max_epochs=1)
    assert not again.run().is_new
    confirmation = study_status(again.study).confirmation
    assert (confirmation.planned_for, confirmation.num_left) == (4, 0)


def test_a_search_ended_by_its_budget_starts_no_trial_and_confirms_in_the_time_left(cache_folder, tmp_path):
    study_settings = {"name": "s", "num_trials": 2, "max_epochs": 1}
    space = {"model_arch": {"value": "Custom_1"}, "batch_size": {"value": 16}}
    final_model = {"num_candidates": 1, "num_seeds": 1}
    settings = Settings(
        work=tmp_path, space=space, study=study_settings, trial={"device": "cpu"}, final_model=final_model
    )
    storage = open_storage(settings.storage, tmp_path, create=True)
    study = define_study(storage, definition_of(settings, cache_folder.name))
    study.add_trial(study_of(*TRIALS[:1], max_epochs=1).get_trials()[0])
    study.set_user_attr(ENDED, value=True)

    def work(*, confirm: bool = True, timeout_s: float | None = None) -> tuple[list[str], list[TrialState]]:
        limited = settings.study.model_copy(update={"timeout_s": timeout_s})
        given = settings.model_copy(update={"study": limited})
        search = Search(study, Cache.open(cache_folder), given, confirm, own_process=False)
        with live_study("s", target=2, num_finished=1, max_epochs=1) as live:
            search.work(live.worker(), lambda *_: None)
        states = [trial.state for trial in study.get_trials()]
        return [each.study_name for each in storage.get_all_studies()], states

    waiting, both = [TrialState.WAITING, TrialState.COMPLETE], ["s", "s/confirmation"]
    assert work(timeout_s=1e-9) == (["s"], waiting)
    assert work() == (both, waiting)
    confirmed = open_confirmation(study).get_trials()
    assert [training_of(trial).name for trial in confirmed] == ["trial 1", "baseline"]
    assert {trial.state for trial in confirmed} == {TrialState.COMPLETE}
    assert work(confirm=False) == (both, [TrialState.COMPLETE] * 2)  # a search by hand continues it


def test_what_cannot_be_trained_is_said_as_without_a_database(cache_folder, tmp_path):
    with pytest.raises(InfeasibleTrialError, match="can be trained here: the training loss"):
        request(tmp_path, cache_folder, diverging(tmp_path), num_seeds=1).run()


def test_a_deleted_study_takes_its_confirmation_along(cache_folder, tmp_path):
    shared = request(tmp_path, cache_folder)
    open_confirmation(shared.study)
    assert [listed.name for listed in list_studies(storage_of(shared.study))] == ["s"]
    delete_study(shared.study, tmp_path)
    assert storage_of(shared.study).get_all_studies() == []
