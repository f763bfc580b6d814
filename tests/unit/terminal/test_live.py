import io

import pytest
from rich.console import Console
from rich.progress import Progress

from csi_job.terminal import live
from csi_job.terminal.live import LiveStudy


def test_every_worker_has_a_bar_while_it_runs_a_trial():
    bars = Progress(console=Console(file=io.StringIO()))
    study = LiveStudy(bars, "toy", target=5, num_finished=1, max_epochs=4)
    first, second = study.worker(1), study.worker(2)
    first.trial_started(7, 1, {}, {})
    first.epoch(7, 0, {"val_f1": 0.5})
    second.trial_started(8, 1, {}, {})
    second.epoch(8, 2, {"val_f1": 0.25})
    study.trials_finished(2)
    assert [(task.description, task.completed) for task in bars.tasks if task.visible] == [
        ("study toy", 2),
        ("worker 1: trial 7, val_f1 0.500", 1),
        ("worker 2: trial 8, val_f1 0.250", 3),
    ]
    first.trial_ended(7, "complete")
    assert [task.description for task in bars.tasks if task.visible][1:] == ["worker 2: trial 8, val_f1 0.250"]
    last = study.worker()
    for phase, noun in (({}, "trial"), ({"noun": "training"}, "training")):
        last.trial_started(9, 1, {}, phase)
        assert bars.tasks[-1].description == f"{noun} 9"
    study.trials_finished(3, 12)
    assert (bars.tasks[0].description, bars.tasks[0].completed, bars.tasks[0].total) == ("confirmation", 3, 12)


def test_the_bar_of_a_confirmation_alone_appears_with_its_first_training():
    bars = Progress(console=Console(file=io.StringIO()))
    study = LiveStudy(bars, "toy", target=0, num_finished=0, max_epochs=4)
    assert [task.visible for task in bars.tasks] == [False]
    study.trials_finished(0, 12)
    assert [(task.visible, task.description, task.total) for task in bars.tasks] == [(True, "confirmation", 12)]


@pytest.mark.parametrize(("number", "prefix"), [(None, ""), (2, "worker 2: ")])
def test_without_a_terminal_a_line_now_and_then(number, prefix, monkeypatch, logged):
    monkeypatch.setattr(live, "PROGRESS_LOG_EVERY_S", 0)
    study = LiveStudy(Progress(disable=True), "toy", target=5, num_finished=1, max_epochs=4)
    study.worker(number).epoch(7, 0, {"val_f1": 0.5})
    assert logged.messages == [f"{prefix}trial 7: epoch 1 of at most 4, val_f1 0.5000"]
    assert logged.records[0].args.get("worker") == number
