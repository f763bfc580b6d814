"""Results arrive completely or not at all; tests/e2e uses the real exec."""

import io
import stat
import subprocess
import tarfile
from types import SimpleNamespace

import pytest

from csi_job.cluster import fetch
from csi_job.cluster.api import Write
from csi_job.cluster.fetch import END_MARKER, PACK, _read_archive, _unpack, _wait_until_running
from csi_job.cluster.stages import WORK
from csi_job.errors import ClusterError
from csi_job.files import write_file
from tests.unit.cluster.namespace import Namespace


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("models/a.json", "models/b.json"):
            member = tarfile.TarInfo(name)
            member.size = 600
            tar.addfile(member, io.BytesIO(b"x" * 600))
    return file.getvalue()


class Exec(Namespace):
    """Gives one answer after the other; the last one is repeated."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__()
        self.answers = list(answers)

    def read_from(self, pod: str, container: str, command: list[str], write: Write, *, idle_timeout_s: float) -> None:
        assert (pod, container, command[0]) == ("pod", "fetch", "sh")
        assert idle_timeout_s > 0
        write(self.answers[0])
        if len(self.answers) > 1:
            self.answers.pop(0)


@pytest.mark.parametrize("lost", [b"", archive()[:2048], archive()], ids=["all", "a file", "the mark"])
def test_a_copy_that_lost_its_end_is_made_again(lost, tmp_path):
    cluster = Exec(lost, archive() + END_MARKER)
    file = io.BytesIO()
    _read_archive(cluster, "pod", file)
    files = list(_unpack(file, tmp_path / "results"))
    assert [path.stat().st_size for path in files] == [600, 600]


def test_the_archive_holds_every_result_and_each_model_once(tmp_path):
    results = ("models/optimized_model.safetensors", "models/final/s/optimized_model.json", "problems.csv",
        "models/final/an earlier study/optimized_model.safetensors", "models/final/s/optimized_model.pth")  # fmt: skip
    others = ("models/.lock", "models/candidates/s/1/seed-1.safetensors", "studies.db")
    others += ("models/final/s/.optimized_model.json.1a2b.tmp", "models/.report/plot.html")
    for name in (*results, *others):
        write_file(tmp_path / "work" / name, name)
    write_file(tmp_path / "work" / "models/final/s/optimized_model.safetensors", results[0])  # a second copy
    command = PACK.replace(f"cd {WORK.root}", f"cd {tmp_path / 'work'}")
    cluster = Exec(subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout)
    file = io.BytesIO()
    _read_archive(cluster, "pod", file)
    files = sorted(_unpack(file, tmp_path / "copy"))
    assert [str(path.relative_to(tmp_path / "copy")) for path in files] == sorted(results)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_file_outside_the_folder_is_not_written(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../escape"))
    file.seek(0)
    with pytest.raises(ClusterError, match=r"outside its folder, got '\.\./escape'"):
        list(_unpack(file, tmp_path / "results"))
    assert not (tmp_path / "escape").exists()


def test_a_copy_that_is_never_complete_is_a_one_line_error():
    cluster = Exec(archive())
    with pytest.raises(ClusterError, match="was cut off 5 times"):
        _read_archive(cluster, "pod", io.BytesIO())


@pytest.mark.parametrize(("message", "waited_s"), [("r/a:1: not found", 181), ("503 Service Unavailable", 900)])
def test_an_image_that_does_not_exist_is_waited_for_less_long_than_its_registry(message, waited_s, monkeypatch):
    waiting = {"waiting": {"reason": "ErrImagePull", "message": message}}
    status = {"phase": "Pending", "containerStatuses": [{"name": "fetch", "state": waiting}]}
    cluster = Namespace({"kind": "Pod", "metadata": {"name": "pod"}, "spec": {}, "status": status})
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))
    with pytest.raises(ClusterError, match=f"did not start within {waited_s} s: ErrImagePull: {message}"):
        _wait_until_running(cluster, "pod")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"phase": "Failed", "reason": "OutOfcpu", "message": "no room"}, "failed: pod pod: OutOfcpu: no room; run"),
        (None, "the pod that reads the volume was deleted; run the same command again"),  # drained, or preempted
    ],
)
def test_a_pod_that_has_ended_is_not_waited_for(status, message):
    pod = {"kind": "Pod", "metadata": {"name": "pod"}, "spec": {}, "status": status}
    with pytest.raises(ClusterError, match=message):
        _wait_until_running(Namespace(*[pod] * bool(status)), "pod")
