import shlex
from datetime import UTC, datetime, timedelta

import yaml
from optuna.trial import TrialState, create_trial

from csi_job.config import Settings
from csi_job.report.settings_file import commands, not_repeated, settings_yaml
from csi_job.report.study_view import view_study
from tests.unit.report.conftest import new_study

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


def sampled_study(*trials):
    """Trials of the given samplers, states, and starts and ends in minutes."""
    study, minute = new_study("toy", target=len(trials)), timedelta(minutes=1)
    for sampler, state, start, end in trials:
        trial = create_trial(state=state, user_attrs={"sampler": sampler, "max_epochs": 8})
        trial.datetime_start, trial.datetime_complete = (MIDNIGHT + part * minute for part in (start, end))
        study.add_trial(trial)
    return view_study(study)


def repeated(view):
    """The sampler and the total of trials of each command."""
    study = yaml.safe_load(settings_yaml(view, None))["study"]
    options = [shlex.split(command) for command in commands(view, "f")[1:]]
    totals = [(words[words.index("--sampler") + 1], int(words[words.index("--n-trials") + 1])) for words in options]
    return [(study["sampler"], study["num_trials"]), *totals]


def test_the_commands_repeat_a_phase_that_comes_back_and_other_startup_trials_but_no_change_of_the_epochs():
    study = new_study("toy", target=8)
    study.set_user_attr("settings", {"study": {"max_epochs_total": 12}})
    study.set_user_attr("max_epochs_total", 1000)
    phases = [("random", 10), ("tpe", 10), ("random", 10), ("tpe", 2)]
    for sampler, num_startup in phases:
        attributes = {"sampler": sampler, "pruner": "none", "max_epochs": 8, "num_startup_trials": num_startup}
        for _ in range(2):
            study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=attributes))
    view = view_study(study)
    first, *others = commands(view, "f")
    flags = "--n-trials {} --max-epochs 8 --sampler {} --n-startup-trials {} --pruner none"
    assert [command.removeprefix(f"{first} \\\n    ") for command in others] == [
        flags.format(2 * number, *phase) for number, phase in enumerate(phases[1:], start=2)
    ]
    settings = yaml.safe_load(settings_yaml(view, None))["study"]
    assert (settings["num_trials"], settings["sampler"], settings["max_epochs_total"]) == (2, "random", 1000)
    assert not_repeated(view) == "The commands do not repeat the change of study.max_epochs_total from 12 to 1000."


def test_the_commands_are_one_per_phase_where_workers_of_several_ran_at_the_same_time():
    failed, pruned = TrialState.FAIL, TrialState.PRUNED
    given = [(("random", "tpe")[i % 2], failed if i == 5 else pruned, i - i % 2, i - i % 2 + 2.5) for i in range(12)]
    view = sampled_study(*given)
    assert repeated(view) == [("random", 6), ("tpe", 11)]
    assert not_repeated(view) == "The commands do not repeat the interleaving of phases that ran at the same time."


def test_stored_values_beyond_later_bounds_are_at_the_bounds_so_that_the_file_can_be_used():
    stored = {"evaluation": {"num_bootstrap": 2_000_000, "confidence": 0.9}, "radiographs": {"split": {"seed": -1}}}
    study = new_study("toy", target=1)
    study.set_user_attr("settings", stored)
    text = settings_yaml(view_study(study), None)
    settings = Settings.model_validate(yaml.safe_load(text))
    assert (settings.evaluation.num_bootstrap, settings.evaluation.confidence) == (1_000_000, 0.9)
    assert settings.radiographs.split.seed == 0
    assert "# evaluation.num_bootstrap was 2000000; the limit is 1000000 now.\n" in text
    assert study.user_attrs["settings"] == stored


def test_no_command_repeats_trials_that_are_not_finished():
    failed, pruned = TrialState.FAIL, TrialState.PRUNED
    samplers, states = ("tpe", "random") * 3, (failed, pruned, failed, pruned, pruned, failed)
    view = sampled_study(*((*each, i, i + 1) for i, each in enumerate(zip(samplers, states, strict=True))))
    assert (repeated(view), not_repeated(view)) == ([("random", 2), ("tpe", 3)], "")
    assert repeated(sampled_study(("tpe", failed, 0, 1), ("random", failed, 1, 2))) == [("tpe", 1)]
