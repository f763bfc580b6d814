"""The file of a backup: whatever a study holds comes back, and what is damaged is refused."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_job.errors import ConfigurationError
from csi_job.transfer.backup_file import Backup, decode, encode
from tests.support.carrying import backups, simple_backup


def same(first: Backup, second: Backup) -> bool:
    """Equal, not-a-numbers and the sign of zero included."""
    return repr(first) == repr(second)


def refused(data: bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sealed(content: bytes) -> bytes:
    """Give an altered content a checksum that fits."""
    start = content.rfind(b"\n", 0, -1) + 1
    return content[:start] + f'"sha256":"{hashlib.sha256(content[:start]).hexdigest()}"}}\n'.encode()


@pytest.fixture
def content() -> bytes:
    return encode(simple_backup())


@given(backups())
@settings(max_examples=60, deadline=None)
def test_whatever_a_study_holds_comes_back(backup: Backup) -> None:
    data = encode(backup)
    assert same(decode(data), backup)
    assert same(decode(gzip.compress(data)), backup)


@given(backups())
@settings(max_examples=10, deadline=None)
def test_the_file_is_strict_json_that_says_what_it_is(backup: Backup) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    tree = json.loads(encode(backup), parse_constant=refuse)
    assert tree["format"] == "csi-job study backup"
    assert tree["version"] == 1
    assert tree["study"]["name"] == "toy"
    assert len(tree["trials"]) == len(backup.trials)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_cut_and_no_altered_byte_goes_unseen(data: st.DataObject) -> None:
    content = encode(data.draw(backups()))
    place = data.draw(st.integers(0, len(content) - 1))
    altered = bytes([content[place] ^ data.draw(st.integers(1, 255))])
    assert refused(content[:place])
    assert refused(content[:place] + altered + content[place + 1 :])
    assert refused(content + b"\n")


def test_a_compressed_file_that_is_cut_or_altered_is_refused(content: bytes) -> None:
    data = gzip.compress(content)
    middle = len(data) // 2
    assert "compression" in refused(data[:middle])
    assert refused(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"number,state\n0,COMPLETE\n", "no backup"),
        (b"{}", "no backup"),
        (b"SQLite format 3\0" + bytes(100), "no backup"),
        (b"\x1f\x8b", "compression"),
    ],
)
def test_another_file_is_refused(data: bytes, expected: str) -> None:
    assert expected in refused(data)


def test_another_version_is_named(content: bytes) -> None:
    message = refused(sealed(content.replace(b'"version":1', b'"version":2', 1)))
    assert "version, got 2; allowed: 1" in message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"MAXIMIZE"', '"UP"'),
        ('"number":1', '"number":7'),
        ('"number":1', '"number":"1"'),
        ('"state":"RUNNING"', '"state":"ASLEEP"'),
        ('"values":[0.5]', '"values":["x"]'),
        ('"params":{"a":[0.5,0]}', '"params":{"a":[0.5,9]}'),
        ('"params":{"a":[0.5,0]}', '"params":["a"]'),
        ('"distributions":["', '"distributions":["{}","'),
        ('"uid":"', '"uid":"not JSON'),
        ('"attempt":2', '"attempts":2'),
        ("T03:04:05", " at noon "),
        ('"trials":[', '"tries":['),
    ],
)  # fmt: skip
def test_what_another_program_wrote_under_a_right_checksum_is_refused(content: bytes, before: str, after: str) -> None:
    altered = content.replace(before.encode(), after.encode())
    assert altered != content
    assert "cannot be understood" in refused(sealed(altered))
