"""Atomic writes, refusal to overwrite, JSON, digests and locks."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.files import (
    STREAM,
    check_free,
    digest,
    digest_file,
    digest_json,
    json_text,
    locked,
    locked_if_free,
    read_file,
    read_json,
    replacing,
    write_atomic,
    write_file,
)


def test_a_write_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomic(path, "new ü\r\n")
    assert path.read_bytes() == "new ü\r\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_replacing_shows_the_new_content_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_keeps_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check_free(path, STREAM, force=False)
    path.touch()
    with pytest.raises(ConfigurationError, match="--force"):
        check_free(STREAM, path, force=False)
    check_free(path, force=True)


def test_a_folder_in_the_way_is_refused_even_with_force(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder"):
        check_free(tmp_path, force=True)


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device", "link to itself"])
def test_anything_but_a_regular_file_is_refused_even_with_force(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to("/dev/null" if kind == "link to a device" else path)
    else:
        path = Path("/dev/null")
    with pytest.raises(ConfigurationError, match=f"not a regular file, got '{path}'"):
        check_free(path, force=True)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_file_is_followed_and_kept(is_there: bool, tmp_path: Path) -> None:  # noqa: FBT001
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(Path("there") / "file")
    if is_there:
        write_file(file, b"old")
        with pytest.raises(ConfigurationError, match="--force"):
            check_free(link, force=False)
    check_free(link, force=True)
    write_file(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"


def test_a_written_file_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_file(path, b"\0\r\n")
    assert write_file(path, b"\0\r\n2") == path
    assert read_file(path) == b"\0\r\n2"
    assert [*path.parent.iterdir()] == [path]


def test_a_failed_write_or_read_is_explained_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CsiJobError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", b"")
    with pytest.raises(ConfigurationError, match="No such file"):
        read_file(tmp_path / "none")


def test_the_stream_is_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_file(STREAM, b"\x1f\x8b")
    assert capfdbinary.readouterr().out == b"\x1f\x8b"


def test_json_is_read_back_if_it_is_an_object(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_json(path) is None
    write_atomic(path, json_text({"name": "ü"}))
    assert read_json(path) == {"name": "ü"}
    for damaged in ("[1]", '{"name"', "[" * 100_000, "\xff"):
        path.write_text(damaged, encoding="latin-1")
        assert read_json(path) is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"value": float("nan")})


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert digest_file(tmp_path / "file") == digest(b"content") == digest("content")
    assert digest("content") == hashlib.sha256(b"content").hexdigest()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1}) == digest('{"a": 1, "b": 2}')


def test_a_lock_is_waited_for_and_freed(tmp_path: Path) -> None:
    order = []
    held = threading.Event()

    def hold() -> None:
        with locked(tmp_path / "lock", ""):
            order.append("first")
            held.set()
            threading.Event().wait(0.3)
            order.append("freed")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with locked_if_free(tmp_path / "lock") as free:
        assert not free
    with locked(tmp_path / "lock", "waiting"):
        order.append("second")
    thread.join()
    assert order == ["first", "freed", "second"]
    with locked_if_free(tmp_path / "lock") as free:
        assert free
