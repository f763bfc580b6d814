"""Whole files and locks."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from csi_job.files import locked, locked_if_free, write_whole


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    write_whole(path, "new ü\r\n")
    assert path.read_bytes() == "new ü\r\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


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
