import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_job.errors import CsiJobError, DataError
from csi_job.radiographs.identity import load_key, pseudonym


def test_a_pseudonym_is_twelve_hexadecimal_digits_that_depend_on_the_key():
    assert pseudonym("Jane Doe", b"k" * 32) == "521f58aabec4"
    assert pseudonym("Jane Doe", b"l" * 32) == "ada22bc526db"
    assert pseudonym("Jane Dof", b"k" * 32) == "016c8b5c3404"


def test_the_key_is_created_once_and_readable_only_by_its_owner(tmp_path):
    path = tmp_path / "identity.key"
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: load_key(path), range(16)))
    assert len(keys) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.key"]


def test_a_key_that_cannot_be_flushed_leaves_no_copy(tmp_path, monkeypatch):
    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CsiJobError, match=r"cannot be stored .*check the disk"):
        load_key(tmp_path / "identity.key")
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_key_and_a_missing_folder_are_one_line_errors(tmp_path):
    (tmp_path / "identity.key").write_bytes(b"short")
    with pytest.raises(DataError, match="damaged"):
        load_key(tmp_path / "identity.key")
    with pytest.raises(DataError, match="cannot be stored"):
        load_key(tmp_path / "missing" / "identity.key")
