import hashlib
import os
from pathlib import Path

import pytest

from csi_job.cache import digest_index
from csi_job.cache.digest_index import DigestIndex

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
    real = digest_index._digest_image

    def counted(path):
        read.append(path)
        return real(path)

    monkeypatch.setattr(digest_index, "_digest_image", counted)
    monkeypatch.setattr(digest_index, "_SETTLED_NS", -1_000_000_000)
    return read


def digest(paths: list[Path], tmp_path: Path) -> list[str]:
    return [digest.sha256 for digest in DigestIndex(tmp_path, KEY, [*map(str, paths)]).read_all()]


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
    digest_index._SETTLED_NS = 3600 * 10**9
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
    index = DigestIndex(tmp_path / "missing", KEY, [*map(str, paths)])
    assert len(index.read_all()) == len(num_read) == 5


def test_what_a_decoder_read_is_known_to_all_and_later_unless_the_file_changed(paths, tmp_path, num_read):
    index, other = (DigestIndex(tmp_path, KEY, [*map(str, paths)]) for _ in range(2))
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    paths[4].write_bytes(b"changed")
    for place, sha256 in enumerate(expected):
        index.add(place, sha256)
    assert not other.is_complete()
    index.flush()
    assert index.is_complete()
    assert not other.is_complete()
    assert [other[place].sha256 for place in range(4)] == expected[:4]
    assert other[4] is None
    assert [digest.sha256 for digest in index.read_all()] == expected
    assert digest(paths, tmp_path)[:4] == expected[:4]
    assert num_read == [str(paths[4])]
