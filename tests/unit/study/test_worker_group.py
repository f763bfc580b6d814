import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csi_job.errors import ConfigurationError, CsiJobError, ResourceError, StopRequestedError
from csi_job.study.settings import StudySettings
from csi_job.study.worker_group import MAX_RESTARTS, WorkerGroup, visible_gpus, worker_environments
from csi_job.trial.settings import TrialSettings
from tests.support.processes import num_lines, wait_until

UNTIL_STOPPED = "worker.run_until_stopped()"
DIE = "worker.die()"


def run_group(folder, codes, on_event=lambda _: None):
    """Run workers; each start of one runs the next of its codes, and the last one from then on."""
    events = []

    def keep(number, kind, values):
        events.append((number, kind, list(values)))
        on_event(events)

    environments = [{"NUMBER": str(number), "CUDA_VISIBLE_DEVICES": f"GPU-{number}"} for number in codes]
    group = WorkerGroup("tests.support.group_worker", environments, lambda: pickle.dumps((codes, folder)), keep)
    group.run()
    return events


def num_starts(folder):
    return {int(path.name): num_lines(path) for path in sorted(folder.iterdir())}


def test_each_worker_sees_its_gpu_and_its_lines_name_it(tmp_path, logged):
    code = 'worker.log.info("100 %% on %(gpu)s", {"gpu": os.environ["CUDA_VISIBLE_DEVICES"]}); print("noise")'
    named = 'from csi_job.logs import log_line; log_line(worker.log, 20, "half", {"gpu": "none"})'
    events = run_group(tmp_path, {1: [f"{code}; {named}; worker.epoch()"], 2: [code]})
    assert events == [(1, "epoch", [1, 0, {"val_f1": 0.5}])]
    assert sorted(logged.messages) == ["worker 1: 100 % on GPU-1", "worker 1: half", "worker 2: 100 % on GPU-2"]
    assert {(record.name, record.args["worker"], record.args["gpu"]) for record in logged.records} == {
        ("csi_job.toy", 1, "GPU-1"),
        ("csi_job.toy", 1, "none"),
        ("csi_job.toy", 2, "GPU-2"),
    }


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        (DIE, "killed, perhaps because memory ran out"),
        ("os.kill(os.getpid(), 11)", "ended by signal 11 (Segmentation fault)"),
        ("raise SystemExit(143)", "ended with exit code 143"),
        ('worker.fail("the GPU is lost", 1, ends_search=False)', "the GPU is lost"),
    ],
)
def test_a_worker_that_dies_is_restarted(death, reason, tmp_path, caplog):
    run_group(tmp_path, {1: [death, "pass"], 2: ["pass"]})
    assert num_starts(tmp_path) == {1: 2, 2: 1}
    assert caplog.messages == [f"worker 1: {reason}; restarting it"]


def test_a_worker_is_given_up_after_deaths_in_a_row_without_an_epoch(tmp_path, caplog):
    with pytest.raises(CsiJobError, match="killed") as caught:
        run_group(tmp_path, {1: [DIE, DIE, f"worker.epoch(); {DIE}", DIE]})
    assert caught.value.exit_code == 1
    assert num_starts(tmp_path) == {1: 2 + 1 + MAX_RESTARTS}
    assert caplog.messages[-1].endswith("giving it up, since it keeps dying without an epoch")


def test_the_others_finish_without_a_worker_that_was_given_up(tmp_path, monkeypatch):
    given_up = tmp_path / "given-up"
    monkeypatch.setattr("csi_job.study.worker_group.logger.error", lambda *_: given_up.touch())
    (folder := tmp_path / "starts").mkdir()
    run_group(folder, {1: [DIE], 2: [f"while not os.path.exists({str(given_up)!r}): pass"]})
    assert num_starts(folder) == {1: 1 + MAX_RESTARTS, 2: 1}


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_that_concerns_all_ends_all_with_its_exit_code(code, tmp_path):
    failing = f'worker.fail("too many trials failed", {code}, ends_search=True)'
    ends = []
    with pytest.raises(CsiJobError, match=r"^too many trials failed$") as caught:
        run_group(tmp_path, {1: [failing], 2: [UNTIL_STOPPED]}, ends.extend)
    assert caught.value.exit_code == code
    assert num_starts(tmp_path) in ({1: 1, 2: 1}, {1: 1})  # the other one may not have started yet


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_worker_and_none_is_restarted(number, code, tmp_path):
    seen = []

    def on_event(events):
        seen[:] = events
        if [kind for _, kind, _ in events] == ["trial_started"] * 2:
            os.kill(os.getpid(), number)

    with pytest.raises(StopRequestedError) as caught:
        run_group(tmp_path, {1: [UNTIL_STOPPED], 2: [UNTIL_STOPPED]}, on_event)
    assert caught.value.exit_code == code
    assert {(worker, kind) for worker, kind, _ in seen[2:]} == {(1, "trial_ended"), (2, "trial_ended")}
    assert num_starts(tmp_path) == {1: 1, 2: 1}


PARENT = """
import sys
from pathlib import Path
from tests.unit.study.test_worker_group import run_group
def show(events):
    if events[-1][1] == "trial_started":
        print(events[-1][2][2]["pid"], flush=True)
run_group(Path(sys.argv[1]), {1: [sys.argv[2]], 2: [sys.argv[2]]}, show)
"""


@pytest.mark.parametrize(
    ("code", "number", "exit_code"),
    [("worker.hang()", signal.SIGINT, 130), (UNTIL_STOPPED, signal.SIGKILL, -9)],
    ids=["a second Ctrl-C", "the death of the parent"],
)
def test_no_worker_outlives(code, number, exit_code, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, "-c", PARENT, str(tmp_path), code]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as parent:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        wait_until(lambda: parent.send_signal(number) or parent.poll() is not None, 60)
        assert parent.returncode == exit_code
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60)


TWO_GPUS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""
TWO_INSTANCES = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-aaaa/2/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose GPUs CUDA counts and `nvidia-smi -L` lists, of which there are none yet."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return monkeypatch


def install(machine, folder, num_gpus, listed=""):
    machine.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    machine.setattr(torch.cuda, "device_count", lambda: num_gpus)
    (folder / "list").write_text(listed)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n[ $1 = -L ] && exec cat {folder}/list\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize(
    ("num_gpus", "listed", "given", "expected"),
    [
        (0, "", None, []),
        (0, TWO_GPUS, "", []),
        (2, TWO_GPUS, None, ["0", "1"]),
        (2, "", None, ["0", "1"]),
        (2, TWO_GPUS, "3, GPU-bbbb", ["3", "GPU-bbbb"]),
        (1, TWO_GPUS, "1,7", ["1"]),  # CUDA stops at the first that does not exist
        (1, TWO_INSTANCES, None, ["MIG-1111", "MIG-GPU-aaaa/2/0", "GPU-bbbb"]),  # of which CUDA sees one
        (1, TWO_INSTANCES, "MIG-1111,MIG-GPU-aaaa/2/0", ["MIG-1111", "MIG-GPU-aaaa/2/0"]),
    ],
)
def test_every_gpu_and_instance_is_found(machine, tmp_path, num_gpus, listed, given, expected):
    install(machine, tmp_path, num_gpus, listed)
    if given is not None:
        machine.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected
    if given is None:  # without the driver's tool, CUDA counts them
        machine.setenv("PATH", "/nowhere")
        assert visible_gpus() == [str(number) for number in range(num_gpus)]


def test_a_driver_that_does_not_answer_lists_no_gpu(machine, tmp_path):
    install(machine, tmp_path, 1)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    machine.setattr("csi_job.study.worker_group.DRIVER_LIMIT_S", 0.2)
    assert visible_gpus() == ["0"]


@pytest.mark.parametrize(
    ("num_gpus", "device", "workers", "gpus", "threads"),
    [
        (0, "auto", "auto", [None], "8"),
        (0, "auto", 3, [None] * 3, "2"),
        (0, "cpu", 16, [None] * 16, "1"),
        (4, "cpu", "auto", [None], "8"),
        (4, "auto", "auto", ["0", "1", "2", "3"], "2"),
        (4, "cuda", 3, ["0", "1", "2"], "2"),
    ],
)
def test_a_worker_gets_a_gpu_and_a_share_of_the_cores(machine, tmp_path, num_gpus, device, workers, gpus, threads):
    install(machine, tmp_path, num_gpus)
    machine.setattr("csi_job.study.worker_group.num_cores", lambda: 8)
    study, trial = StudySettings.model_validate({"workers": workers}), TrialSettings.model_validate({"device": device})
    environments = worker_environments(study, trial)
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments] == gpus
    assert {environment["OMP_NUM_THREADS"] for environment in environments} == {threads}
    machine.setenv("OMP_NUM_THREADS", "5")  # what is set stays
    assert {environment["OMP_NUM_THREADS"] for environment in worker_environments(study, trial)} == {"5"}


@pytest.mark.parametrize(
    ("num_gpus", "device", "expected"),
    [
        (2, "auto", r"study.workers: 2 GPUs are visible, got 3; allowed: auto, or up to 2"),
        (1, "cuda", r"study.workers: one GPU is visible, got 3; allowed: auto, or up to 1"),
    ],
)
def test_more_workers_than_gpus_are_refused(machine, tmp_path, num_gpus, device, expected):
    install(machine, tmp_path, num_gpus)
    with pytest.raises(ConfigurationError, match=expected):
        worker_environments(StudySettings(workers=3), TrialSettings.model_validate({"device": device}))


@pytest.mark.parametrize(
    ("num_gpus", "listed", "given", "expected"),
    [
        (1, TWO_GPUS, None, "torch can use only 1 of the 2 GPUs that nvidia-smi lists"),
        (0, TWO_GPUS, None, "torch can use only 0 of the 2 GPUs that nvidia-smi lists"),
        (3, "", "0,1,GPU-dddd,2", "torch can use only 3 of the 4 GPUs that CUDA_VISIBLE_DEVICES names"),
        (2, TWO_GPUS, None, None),
        (1, TWO_INSTANCES, None, None),  # CUDA never sees more than one
        (1, TWO_GPUS, "1,-1,0", None),
        (0, TWO_GPUS, "", None),
        (0, TWO_GPUS, "none", None),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_named_once(machine, tmp_path, caplog, num_gpus, listed, given, expected):
    install(machine, tmp_path, num_gpus, listed)
    if given is not None:
        machine.setenv("CUDA_VISIBLE_DEVICES", given)
    visible_gpus()
    assert caplog.messages == ([expected] if expected else [])


def test_a_missing_gpu_is_an_error_that_is_worth_a_retry(machine, tmp_path):
    install(machine, tmp_path, 0)
    with pytest.raises(ResourceError, match="torch finds no GPU"):
        worker_environments(StudySettings(workers=3), TrialSettings(device="cuda"))
