import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from csi_job.cache import key as content
from csi_job.cache.key import DigestIndex, ImageDigest
from csi_job.cache.settings import CacheSettings
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable

KEY = b"k" * 32


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(bytes([number]) * 1000)
    return sorted(folder.iterdir())


@pytest.fixture
def num_read(monkeypatch):
    """The files read so far; files count as settled at once."""
    read = []
    real = content._digest_image

    def counted(path):
        read.append(path)
        return real(path)

    monkeypatch.setattr(content, "_digest_image", counted)
    monkeypatch.setattr(content, "_SETTLED_NS", -1_000_000_000)
    return read


def digest(paths: list[Path], tmp_path: Path) -> list[str]:
    return [digest.sha256 for digest in DigestIndex(tmp_path, KEY).digest(paths)]


def test_digests_are_those_of_the_content_in_order(paths, tmp_path):
    assert digest(paths, tmp_path) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_unchanged_files_are_read_once(paths, tmp_path, num_read):
    first = digest(paths, tmp_path)
    assert len(num_read) == 5
    assert digest(paths, tmp_path) == first
    assert len(num_read) == 5


def test_a_file_changed_under_its_old_time_and_size_is_read_again(paths, tmp_path, num_read):
    first = digest(paths, tmp_path)
    times = (paths[2].stat().st_atime_ns, paths[2].stat().st_mtime_ns)
    paths[2].write_bytes(b"\xff" * 1000)
    os.utime(paths[2], ns=times)
    second = digest(paths, tmp_path)
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, True, True]
    assert len(num_read) == 6


def test_files_changed_just_now_are_not_trusted(paths, tmp_path, num_read):
    content._SETTLED_NS = 3600 * 10**9
    digest(paths, tmp_path)
    digest(paths, tmp_path)
    assert len(num_read) == 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', '{"a": [1]}'])
def test_a_damaged_index_costs_only_time(paths, tmp_path, num_read, text):
    for name in ("digests.json", "digests.bin"):
        (tmp_path / name).write_text(text)
    digest(paths, tmp_path)
    digest(paths, tmp_path)
    assert len(num_read) == 5


def test_a_record_whose_end_was_lost_in_a_power_failure_is_not_used(paths, tmp_path, num_read):
    first, index = digest(paths, tmp_path), tmp_path / "digests.bin"
    index.write_bytes(index.read_bytes()[:-30] + bytes(30))
    assert digest(paths, tmp_path) == digest(paths, tmp_path) == first
    assert len(num_read) == 6


def test_the_index_names_no_file_and_grows_by_what_is_new(paths, tmp_path, num_read):
    digest(paths[:3], tmp_path)
    first = (tmp_path / "digests.bin").read_bytes()
    with (tmp_path / "digests.bin").open("ab") as file:
        file.write(b"part of a record")  # as a killed process leaves it
    assert digest(paths, tmp_path) == digest(paths, tmp_path)
    content = (tmp_path / "digests.bin").read_bytes()
    assert content.startswith(first)
    assert len(content) == 5 * 49
    assert len(num_read) == 5
    assert b".png" not in content


def test_an_unreadable_file_has_its_own_digest(paths, tmp_path):
    paths[1].unlink()
    assert digest(paths, tmp_path)[1] == "unreadable"


def test_a_folder_that_cannot_be_written_costs_only_time(paths, tmp_path, num_read):
    index = DigestIndex(tmp_path / "missing", KEY)
    assert len(index.digest(paths)) == len(num_read) == 5


def test_the_key_of_the_first_reader_is_as_version_0_1_wrote_it():
    radiographs, cache = RadiographsSettings(), CacheSettings()
    table = LabelTable(("a",), ("P",), (2,), np.zeros((1, 6), np.int8), has_patients=True)
    settings = {
        "format": 1,
        "reader": 1,
        "image_size_px": cache.image_size_px,
        "normalisation": cache.normalisation,
        "max_image_side_px": radiographs.max_image_side_px,
        "split": radiographs.split.model_dump(),
    }
    written = json.dumps(settings, sort_keys=True) + json.dumps(["a", "P", [0] * 6, "5a"])
    key = content._content_key(table, [ImageDigest("5a", b"")], radiographs, cache, 1)
    assert key == hashlib.sha256(written.encode()).hexdigest()[:16]
