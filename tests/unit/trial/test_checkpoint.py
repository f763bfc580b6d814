import errno
import gc
import io
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
import weakref
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from csi_job.errors import CheckpointError, CheckpointWriteError
from csi_job.trial import checkpoint
from tests.support.bomb import Bomb
from tests.support.processes import wait_until

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "results": [{"epoch": 0, "val_f1": 0.1}], "best": {}}


def test_a_state_survives_a_round_trip(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path / "new folder ä", 7, STATE)
    assert path.name == "epoch-0007.pt"
    state = checkpoint.load_checkpoint(path)
    assert torch.equal(state["model"].pop("weight"), STATE["model"]["weight"])
    assert state == {**STATE, "model": {}}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_newest_two_are_kept_newest_first(tmp_path):
    paths = [checkpoint.save_checkpoint(tmp_path, epoch, STATE) for epoch in (8, 9, 10, 10_000)]
    assert checkpoint.valid_checkpoints(tmp_path) == [paths[3], paths[2]]
    assert sorted(tmp_path.iterdir()) == sorted(paths[2:])
    assert checkpoint.valid_checkpoints(tmp_path / "missing") == []


def test_after_any_flipped_bit_or_truncation_the_checkpoint_before_is_found(tmp_path):
    before, path = (checkpoint.save_checkpoint(tmp_path, epoch, STATE) for epoch in (0, 1))
    intact = path.read_bytes()
    for place in range(0, len(intact), 7):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        assert checkpoint.valid_checkpoints(tmp_path) == [before]
        path.write_bytes(intact[:place])
        with pytest.raises(CheckpointError, match="truncated, corrupt"):
            checkpoint.load_checkpoint(path)
    path.write_bytes(intact[:-1])
    assert checkpoint.valid_checkpoints(tmp_path) == [before]
    path.write_bytes(intact)
    assert checkpoint.valid_checkpoints(tmp_path) == [path, before]
    with pytest.raises(CheckpointError, match="could not be read"):
        checkpoint.load_checkpoint(tmp_path / "epoch-0009.pt")


def test_a_checkpoint_with_code_is_rejected_despite_a_valid_digest(tmp_path):
    file = io.BytesIO()
    torch.save({"model": Bomb(tmp_path / "written")}, file, pickle_module=pickle)
    path = tmp_path / "epoch-0001.pt"
    for content in (file.getvalue(), file.getvalue()[:-4], b""):  # the last two are no archives, either
        path.write_bytes(content + sha256(content).digest() + checkpoint.MARKER)
        with pytest.raises(CheckpointError, match="more than weights"):
            checkpoint.load_checkpoint(path)
    assert not (tmp_path / "written").exists()


def test_a_lack_of_memory_is_no_fault_of_the_checkpoint(tmp_path, monkeypatch):
    path = checkpoint.save_checkpoint(tmp_path, 0, {})
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: bytearray(sys.maxsize))
    with pytest.raises(MemoryError):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize("state", [{}, {"results": None}, {"results": [{"epoch": 0}]}, {"results": [[0, 0.5]]}])
def test_a_checkpoint_without_results_is_named_so(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"epoch-0000\.pt has no results"):
        checkpoint.checkpoint_results(checkpoint.save_checkpoint(tmp_path, 0, state))


def test_what_cannot_be_written_stays_the_error_of_a_checkpoint(tmp_path, monkeypatch):
    """Training continues without checkpoints then, as after no other error."""
    (tmp_path / "file").write_text("")
    for folder in (Path("/proc/checkpoints"), tmp_path / "file"):  # not even root may create the first
        with pytest.raises(CheckpointWriteError, match="could not be written"):
            checkpoint.save_checkpoint(folder, 1, STATE)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(CheckpointWriteError) as raised:
        checkpoint.save_checkpoint(tmp_path, 1, STATE)
    says = f"(No space left on device), got '{tmp_path}'; free up some space, or choose another folder"
    assert str(raised.value).endswith(says)


def test_a_full_disk_leaves_only_the_previous_checkpoint(tmp_path):
    """The limit on a file's size makes the kernel refuse the write as a full disk does."""
    before = checkpoint.save_checkpoint(tmp_path, 1, STATE)
    code = """
import signal, sys, torch
from pathlib import Path
from csi_job.errors import CheckpointWriteError
from csi_job.trial.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    save_checkpoint(Path(sys.argv[1]), 2, {"weight": torch.zeros(1_000_000)})
except CheckpointWriteError as error:
    print(error)
"""
    limit = 1_000_000
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "the checkpoint of epoch 3 could not be written (File too large)" in answer.stdout
    assert answer.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == [before]
    assert checkpoint.valid_checkpoints(tmp_path) == [before]


def test_a_process_killed_while_writing_leaves_the_previous_checkpoint(tmp_path):
    before = checkpoint.save_checkpoint(tmp_path, 1, STATE)
    code = """
import sys, torch
from pathlib import Path
from csi_job.trial.checkpoint import save_checkpoint
state = {"weight": torch.zeros(40_000_000)}
while True:
    save_checkpoint(Path(sys.argv[1]), 2, state)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until(lambda: list(tmp_path.glob(".epoch-0002.*")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.valid_checkpoints(tmp_path)[-1] == before
    checkpoint.save_checkpoint(tmp_path, 3, STATE)
    assert not list(tmp_path.glob(".*"))  # what the killed process left is cleared away


@pytest.mark.parametrize(("name", "epoch"), [("epoch-0012.pt", 12), ("epoch-10000.pt", 10000), ("epoch-1.tmp", -1)])
def test_the_name_gives_the_epoch(name, epoch):
    assert checkpoint.epoch_of(Path(name)) == epoch


@pytest.mark.parametrize("failing", ["cancelled", "full"])
def test_a_write_that_failed_does_not_keep_the_state_in_memory(tmp_path, failing):
    tensor = torch.zeros(100_000)
    memory, cancelled = weakref.ref(tensor), threading.Event()
    if failing == "cancelled":
        cancelled.set()
        with pytest.raises(CheckpointWriteError, match="Operation canceled"):
            checkpoint.save_checkpoint(tmp_path, 1, {"weight": tensor}, cancelled)
    else:
        with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            checkpoint._write_hashed(file, {"weight": tensor}, cancelled)
    del tensor
    gc.collect()
    assert memory() is None
    assert not list(tmp_path.iterdir())


class Disk:
    """Stands for `save_checkpoint`: a write takes until it is released, and fails if asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = queue.SimpleQueue[int](), queue.SimpleQueue[OSError | None]()
        self.save = checkpoint.save_checkpoint
        monkeypatch.setattr("csi_job.trial.checkpoint.save_checkpoint", self.write)

    def write(self, folder: Path, epoch: int, state: dict[str, Any], cancelled: threading.Event) -> Path:
        self.begun.put(epoch)
        if (error := self.released.get(timeout=60)) is not None:
            raise CheckpointWriteError(str(error))
        return self.save(folder, epoch, state, cancelled)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_training_continues_while_a_checkpoint_is_written(tmp_path, disk):
    writer = checkpoint.CheckpointWriter(tmp_path)
    assert [writer.epoch_done(epoch, STATE, epoch_s=0.0) for epoch in range(4)] == [None] * 4
    disk.released.put(None)
    disk.released.put(None)
    writer.flush()  # waits for the first, then writes the newest; those between were replaced in memory
    assert [disk.begun.get(), disk.begun.get()] == [0, 3]
    assert disk.begun.empty()
    assert [path.name for path in checkpoint.valid_checkpoints(tmp_path)] == ["epoch-0003.pt", "epoch-0000.pt"]
    writer.flush()  # there is nothing newer
    writer.close()


def test_a_long_epochs_checkpoint_is_on_the_disk_before_its_result_is_used(tmp_path, disk):
    """Training may wait a fiftieth of the time since the last one, and a minute must not be lost."""
    writer = checkpoint.CheckpointWriter(tmp_path)
    for epoch in range(3):
        writer._began_s -= 3000  # the epoch took 50 minutes
        disk.released.put(None)
        assert writer.epoch_done(epoch, STATE, epoch_s=3000) == tmp_path / f"epoch-{epoch:04d}.pt"
    writer.close()


@pytest.mark.parametrize(
    ("write_s", "epoch_s", "expected_s"),
    [
        (0.1, 1.0, 5.0),  # writing takes 2 % of the time
        (10.0, 1.0, 49.0),  # more, since a kill at the end of the next epoch and write would cost a minute
        (1.0, 70.0, -11.0),  # every long epoch
    ],
)
def test_checkpoints_are_written_on_a_clock(write_s, epoch_s, expected_s):
    assert checkpoint.interval_s(write_s, epoch_s) == pytest.approx(expected_s)


def test_a_checkpoint_within_the_interval_waits(tmp_path, disk):
    writer = checkpoint.CheckpointWriter(tmp_path)
    writer._began_s -= 3000
    disk.released.put(None)
    first = writer.epoch_done(0, STATE, epoch_s=1.0)
    assert first == tmp_path / "epoch-0000.pt"
    writer._took_s = 0.1
    assert writer.epoch_done(1, STATE, epoch_s=1.0) == first
    writer._began_s -= 6
    assert writer.epoch_done(2, STATE, epoch_s=1.0) == first
    assert [disk.begun.get(), disk.begun.get()] == [0, 2]
    disk.released.put(OSError("No space left"))
    with pytest.raises(CheckpointWriteError, match="No space left"):  # reaches the training at a later epoch
        writer.flush()
    writer.close()


def test_what_is_being_written_is_given_up_when_the_training_is_over(tmp_path, disk):
    writer = checkpoint.CheckpointWriter(tmp_path)
    assert writer.epoch_done(0, {**STATE, "weight": torch.zeros(1000)}, epoch_s=0.0) is None
    assert disk.begun.get() == 0
    writer._cancelled.set()
    disk.released.put(None)
    writer.close()
    assert list(tmp_path.iterdir()) == []
