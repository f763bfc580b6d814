"""Weights & Biases, the real one: offline, and with a server that never answers."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from wandb.proto import wandb_internal_pb2

from csi_job.errors import DataError
from csi_job.search import log_summary
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions
from csi_job.tracking import wandb_process
from csi_job.tracking.settings import TrackingSettings
from csi_job.tracking.wandb import WandbTracker
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.schedule import EpochResult
from csi_job.trial.space import SearchSpace
from tests.support.processes import wait_until
from tests.support.studies import define, value_at, work_on, write_checkpoint

SECRET = "s3cret-password"
IMPORTANCES = {"x": 0.75, "y": 0.25}
BLOCK_BYTES, FULL, LAST = 32768, 1, 4


def objective(running: RunningTrial[Hyperparameters]) -> list[float]:
    x = running.params.unknown_weight
    first = int(running.resume_from.stem[-4:]) + 1 if running.resume_from else 0
    for epoch in range(first, running.max_epochs):
        checkpoint = write_checkpoint(running.checkpoint_folder, epoch, x)
        value = value_at(x, epoch)
        running.epoch_done(EpochResult(epoch, 0.5, 0.6, value, 1e-3, 100.0, 0.1), checkpoint)
        if running.number == 1 and running.attempt == 1 and epoch == 1:
            raise DataError("stop here")
    return [x]


def run(study: optuna.Study, work: Path, tracker: WandbTracker) -> None:
    """Run the trials by two workers, of which the first stops in the second trial."""
    options = WorkerOptions(trackers=[tracker], own_process=False)
    with pytest.raises(DataError):
        work_on(study, work, objective, num_trials=3, options=options)
    assert work_on(study, work, objective, num_trials=3, options=options).num_finished == 3


def runs(work: Path) -> dict[str, list[Path]]:
    """The files of the ended offline runs by id."""
    found: dict[str, list[Path]] = {}
    for path in sorted((work / "wandb").glob("offline-run-*/*.wandb")):
        kept = list(records(path))
        if any(record.HasField("exit") for record in kept):
            name = next(record.run.run_id for record in kept if record.HasField("run"))
            found.setdefault(name, []).append(path)
    return found


def records(path: Path) -> Iterator[Any]:
    """The records of a run's file: a log of blocks as LevelDB writes it, after a header of seven bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def logged_trials(path: Path) -> list[dict[str, Any]]:
    """The rows of a summary's table of trials."""
    [table] = (path.parent / "files" / "media" / "table").glob("trials_*.table.json")
    content = json.loads(table.read_text())
    return [dict(zip(content["columns"], values, strict=True)) for values in content["data"]]


def history(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """What a run logged, step by step."""
    for record in (record for path in paths for record in records(path) if record.HasField("history")):
        yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def summary_values(path: Path, key: str) -> list[Any]:
    """The values that a run's summary had under a key, one after another."""
    items = (item for record in records(path) if record.HasField("summary") for item in record.summary.update)
    return [json.loads(item.value_json) for item in items if ".".join(item.nested_key) == key or item.key == key]


def wait_for_runs(work: Path, num_files: int) -> dict[str, list[Path]]:
    """Wait until the processes behind the search are done."""
    wait_until(lambda: sum(map(len, runs(work).values())) >= num_files)
    return runs(work)


@pytest.fixture
def study(storage):
    return define(storage, num_trials=3)


@pytest.mark.parametrize("project", [None, ""])
def test_without_a_project_nothing_is_tracked(project, study, tmp_path):
    assert WandbTracker.if_enabled(TrackingSettings(wandb_project=project), study, tmp_path) is None


def test_offline_every_trial_is_a_run_of_the_study_resumed_under_the_same_id(study, tmp_path, monkeypatch):
    monkeypatch.setenv("CSI_JOB_STORAGE__PASSWORD", SECRET)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    tracker = WandbTracker.if_enabled(TrackingSettings(wandb_project="csi"), study, tmp_path)
    run(study, tmp_path, tracker)
    study.add_trial(create_trial(value=0.9, params={"lion": 1.5}, distributions={"lion": FloatDistribution(0, 2)}))
    log_summary(tracker, study)
    tracker.close()
    uid = study.user_attrs["uid"]
    found = wait_for_runs(tmp_path, 5)
    assert set(found) == {f"{uid}-0", f"{uid}-1", f"{uid}-2", f"{uid}-summary"}
    assert [(row["trial"], row["state"]) for row in logged_trials(found[f"{uid}-summary"][0])] == [
        (number, "complete")
        for number in range(3)  # not the one that another program added outside the space
    ]
    for trial in study.trials[:3]:
        shown = [(step + 1, value) for step, value in sorted(trial.intermediate_values.items())]  # from 1
        logged = [(row["epoch"], row["val_f1"]) for row in history(found[f"{uid}-{trial.number}"])]
        assert sorted(logged) == shown
    assert len(found[f"{uid}-1"]) == 2  # two attempts, one id
    [first] = [record.run for record in records(found[f"{uid}-0"][0]) if record.HasField("run")][:1]
    assert (first.project, first.run_group, first.display_name) == ("csi", "toy", "toy 0")
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["unknown_weight"] == study.trials[0].params["unknown_weight"]
    assert (config["trial"], config["sampler"], config["max_epochs"]) == (0, "tpe", 4)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert SECRET.encode() not in everything
    wait_until(lambda: not any((tmp_path / "tmp").iterdir()))
    assert b"studies.db" not in everything
    names = b"".join(path.read_bytes() for path in found[f"{uid}-summary"])
    assert b"importances" in names
    assert b"parallel_coordinate" in names


def test_the_run_of_a_paused_trial_gets_the_outcome_that_another_claim_gives_it(storage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    asha = {"num_trials": 6, "pruner": "asha", "sampler": "random", "min_resource": 1, "max_epochs": 4}
    study = define(storage, **asha)
    tracker = WandbTracker(TrackingSettings(wandb_project="csi"), study, tmp_path)
    paused = []
    monkeypatch.setattr(RunningTrial, "pause", lambda trial, pause=RunningTrial.pause: paused.append(pause(trial)))
    work_on(study, tmp_path, objective, options=WorkerOptions(trackers=[tracker], own_process=False), **asha)
    tracker.close()
    pruned = {trial.number for trial in study.trials if trial.state.name == "PRUNED"}
    assert len(pruned) > 1
    found = wait_for_runs(tmp_path, 6 + len(paused))  # a file for each time it was opened
    for trial in study.trials:
        of_run = found[f"{study.user_attrs['uid']}-{trial.number}"]
        outcomes = [outcome for path in of_run for outcome in summary_values(path, "outcome")]
        assert ("pruned" in outcomes, "complete" in outcomes) == (trial.number in pruned, trial.number not in pruned)
        assert "released" not in outcomes
    # Two processes may open a trial's run in the same second, after which W&B names its folder.
    suffixes = {path.parent.name.rpartition("-")[2] for paths in found.values() for path in paths}
    assert len(suffixes) == 6 + len(paused)


def test_a_server_that_never_answers_delays_no_trial(study, tmp_path, monkeypatch, caplog):
    with socket.socket() as black_hole:
        black_hole.bind(("127.0.0.1", 0))
        black_hole.listen(100)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{black_hole.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "20")  # longer than the trials take on a busy machine
        tracker = WandbTracker(TrackingSettings(wandb_project="csi"), study, tmp_path)
        run(study, tmp_path, tracker)
        # The trials are over, and not one run has been opened, nor given up, yet.
        assert runs(tmp_path) == {}
        black_hole.settimeout(60)
        connection, _ = black_hole.accept()
        assert connection.recv(4) in (b"POST", b"GET ")
        wait_for_runs(tmp_path, 4)
        tracker.close()
    assert "server cannot be used" in caplog.text
    assert caplog.text.count("Weights & Biases:") == 1


class SilentServer(BaseHTTPRequestHandler):
    """A server of Weights & Biases that opens runs, and never answers about what they send."""

    project: ClassVar = {"name": "csi", "entity": {"name": "me"}}
    files: ClassVar = {"runID": "1", "uploadHeaders": [], "files": []}

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("file_stream"):
            self.server.over.wait()
        bucket = {"id": "1", "name": asked.get("variables", {}).get("name"), "project": self.project}
        answer = {"data": {"upsertBucket": {"bucket": bucket}, "createRunFiles": self.files}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def silent_server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), SilentServer) as server:
        server.over = Event()
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
        yield
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("silent_server")
def test_a_run_whose_upload_never_ends_is_kept_whole_and_said(study, tmp_path, caplog):
    tracker = WandbTracker(TrackingSettings(wandb_project="csi"), study, tmp_path)
    tracker.trial_started(0, 1, {"x": 0.5}, {})
    tracker.epoch(0, 0, {"val_f1": 0.25})
    tracker.trial_ended(0, "complete")
    tracker.close(120)
    [path] = (tmp_path / "wandb").glob("run-*/*.wandb")
    assert f"within 1 s; to upload such a run later: wandb sync --include-online {path.parent};" in caplog.text
    assert [(row["epoch"], row["val_f1"]) for row in history([path])] == [(1, 0.25)]
    assert any(record.HasField("exit") for record in records(path))


@pytest.mark.usefixtures("silent_server")
def test_runs_of_one_process_go_offline_after_one_that_was_not_uploaded(study, tmp_path):
    with WandbTracker(TrackingSettings(wandb_project="csi"), study, tmp_path) as tracker:
        for number in range(3):
            tracker.trial_ended(number, "pruned")
        tracker.close(120)
    assert len(list((tmp_path / "wandb").glob("run-*"))) == 1
    assert len(runs(tmp_path)) == 2


def test_the_file_of_a_running_trial_grows(study, tmp_path):
    tracker = WandbTracker(TrackingSettings(wandb_project="csi", wandb_mode="offline"), study, tmp_path)
    tracker.trial_started(0, 1, {"x": 0.5}, {})
    tracker.epoch(0, 0, {"val_f1": 0.25})
    wait_until(lambda: [*history([*(tmp_path / "wandb").glob("offline-run-*/*.wandb")])])
    assert runs(tmp_path) == {}
    tracker.close()


@pytest.mark.parametrize(("text", "seconds"), [("2.5", 2.5), ("", 7), ("2m", 7), ("0", 7), ("nan", 7), ("inf", 7)])
def test_a_time_limit_is_the_variable_s_if_it_is_one(text, seconds, monkeypatch):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", text)
    assert wandb_process.time_limit_s("WANDB_INIT_TIMEOUT", 7) == seconds


SLOW_SERVICE = """
import os, signal, subprocess, sys
from pathlib import Path
from wandb.sdk.lib.service.service_connection import ServiceConnection
from csi_job.tracking import wandb_process

def finish(connection, run_id, finish=ServiceConnection.inform_finish):
    [service] = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    os.kill(int(service), signal.SIGSTOP)
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -CONT {service}"])
    finish(connection, run_id)

ServiceConnection.inform_finish = finish
wandb_process.main(sys.stdin, sys.stderr)
os._exit(0)
"""


def test_the_process_of_a_run_ends_after_its_file(tmp_path):
    lines = [{"project": "csi", "id": "a-0", "config": {}, "mode": "offline"}, {"step": 0, "metrics": {"val_f1": 0.25}}]
    (tmp_path / "wandb").mkdir()
    subprocess.run(
        [sys.executable, "-c", SLOW_SERVICE],
        input="\n".join(map(json.dumps, lines)),
        env=os.environ | {"WANDB_DIR": str(tmp_path)},
        text=True,
        check=True,
    )
    assert list(runs(tmp_path)) == ["a-0"]


def test_a_tracker_that_cannot_start_costs_nothing(study, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sys.executable", str(tmp_path / "no python"))
    (tmp_path / "wandb").write_text("no folder")
    tracker = WandbTracker(TrackingSettings(wandb_project="csi", wandb_mode="offline"), study, tmp_path)
    run(study, tmp_path, tracker)
    tracker.log_summary(IMPORTANCES, (), None)
    tracker.close()
    assert "cannot start" in caplog.text


def test_the_key_is_read_from_its_file_for_the_runs_process_alone(study, tmp_path):
    key = tmp_path / "api-key"
    key.write_text("secret\n")
    settings = TrackingSettings(wandb_project="csi", wandb_api_key_file=key)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s" "$WANDB_API_KEY" > "$WANDB_DIR/seen"\ncat > /dev/null\n')
    python.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", str(python))
        tracker = WandbTracker(settings, study, tmp_path)
        tracker.log_summary(IMPORTANCES, (), None)
        tracker.close()
    assert (tmp_path / "seen").read_text() == "secret"
    assert "WANDB_API_KEY" not in os.environ


@pytest.mark.parametrize("content", [None, "key".encode("utf-16")])
def test_a_key_file_that_cannot_be_read_is_named_once_and_costs_no_trial(study, tmp_path, caplog, content):
    if content is not None:
        (tmp_path / "no-key").write_bytes(content)
    settings = TrackingSettings(wandb_project="csi", wandb_api_key_file=tmp_path / "no-key")
    tracker = WandbTracker(settings, study, tmp_path)
    run(study, tmp_path, tracker)
    tracker.log_summary(IMPORTANCES, (), None)
    tracker.close()
    [warning] = [record.getMessage() for record in caplog.records if "Weights & Biases" in record.getMessage()]
    assert str(tmp_path / "no-key") in warning
    assert not list((tmp_path / "wandb").glob("*run-*"))


def test_the_summary_of_a_study_without_finished_trials_lists_its_trials_only(storage, tmp_path):
    space = SearchSpace(model_arch={"choices": ["Custom_1", "resnet18"]})  # without the default
    study = define(storage, space=space)
    tracker = WandbTracker(TrackingSettings(wandb_project="csi", wandb_mode="offline"), study, tmp_path)
    log_summary(tracker, study)
    tracker.close()
    found = wait_for_runs(tmp_path, 1)
    assert list(found) == [f"{study.user_attrs['uid']}-summary"]
    [path] = found[f"{study.user_attrs['uid']}-summary"]
    logged = {name.split(".")[0] for row in history([path]) for name in row}
    assert {"importances_table", "trials"} <= logged
    assert "parallel_coordinate" not in logged
    [row] = logged_trials(path)
    assert (row["trial"], row["state"], row["val_f1"]) == (0, "waiting", None)
