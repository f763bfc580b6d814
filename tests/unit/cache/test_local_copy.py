import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from csi_job.cache import local_copy
from csi_job.cache.dataset import Cache
from csi_job.errors import DataError, StopRequestedError


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_training_reads_a_copy_that_is_made_once_per_node(built, node, monkeypatch):
    copies, copy, plain = [], local_copy._copy, Cache.open(built)
    monkeypatch.setattr(local_copy, "_copy", lambda *given: (copies.append(given[0].name), copy(*given)))
    assert Cache.open(built, 1).split("test").images_NHW.equal(plain.split("test").images_NHW)
    assert copies == []
    for _ in range(2):
        cache = Cache.open(built, 1)
        for name in ("train", "validation"):
            assert cache.split(name).images_NHW.equal(plain.split(name).images_NHW)
    assert copies == ["train.npy", "validation.npy"]
    (place,) = node.glob(f"csi-job-*/{plain.info.key}")
    assert sorted(path.name for path in place.iterdir()) == ["lock", "train.npy", "validation.npy"]
    (place / "train.npy").write_bytes((built / "train.npy").read_bytes()[:-1])
    assert Cache.open(built, 1).train.images_NHW.equal(plain.train.images_NHW)
    assert copies == ["train.npy", "validation.npy", "train.npy"]


def too_small(_node: Path, _monkeypatch: pytest.MonkeyPatch) -> float:
    return 1e-9


def full(_node: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    return 1.0


def another_users(node: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    (node / "csi-job-12345").mkdir()
    monkeypatch.setattr("os.getuid", lambda: 12345)
    return 1.0


def another_users_link(node: Path, _monkeypatch: pytest.MonkeyPatch) -> float:
    (node / "private").mkdir()
    (node / f"csi-job-{os.getuid()}").symlink_to("private")
    return 1.0


def not_a_folder(node: Path, _monkeypatch: pytest.MonkeyPatch) -> float:
    (node / f"csi-job-{os.getuid()}").touch()
    return 1.0


@pytest.mark.usefixtures("node")
def test_a_signal_while_copying_is_no_reason_to_train_without_a_copy(built, monkeypatch):
    def stopped(*_):
        raise StopRequestedError(15)

    monkeypatch.setattr(local_copy, "_copy", stopped)
    with pytest.raises(StopRequestedError):
        _ = Cache.open(built, 1).train


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (too_small, "a copy is too large, got '0.0 GiB'; allowed: cache.local_copy_gib, 1e-09"),
        (full, "too little space is left, got '"),
        (another_users, "the folder belongs to another user, or is a link, got '"),
        (another_users_link, "the folder belongs to another user, or is a link, got '"),
        (not_a_folder, "File exists"),
    ],
)
def test_where_no_copy_can_be_made_training_reads_the_cache_and_says_why(
    built, node, monkeypatch, caplog, given, reason
):
    limit_gib = given(node, monkeypatch)
    cache = Cache.open(built, limit_gib)
    with caplog.at_level(logging.WARNING, "csi_job"):
        assert cache.train.images_NHW.equal(Cache.open(built).train.images_NHW)
        assert len(cache.validation) == cache.info.num_images["validation"]
    (line,) = caplog.messages
    assert line.startswith(f"training reads the cache in {built} itself, which is not copied to this node: {reason}")
    assert not list(node.rglob("*.npy"))


def test_an_array_that_differs_from_its_digest_is_refused_while_it_is_copied(built, node):
    folder = shutil.copytree(built, node / "work" / built.name)
    pixels = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1]))
    with pytest.raises(DataError, match=r"train\.npy of the cache differs from its digest"):
        _ = Cache.open(folder, 1).train
    assert not list(node.glob("csi-job-*/*/*.npy"))
