"""Results that reach this machine whole or not at all; the real exec is driven by tests/e2e."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO, Any

import pytest

from csi_job.cluster.fetch import WHOLE, _read_whole, _unpacked
from csi_job.errors import ClusterError


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("models/a.json", "models/b.json"):
            member = tarfile.TarInfo(name)
            member.size = 600
            tar.addfile(member, io.BytesIO(b"x" * 600))
    return file.getvalue()


class Exec:
    """Answers one after the other; the last one stays."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)

    def read_from(self, _pod: str, _command: list[str], into: IO[bytes], *, silence_s: float) -> None:
        assert silence_s > 0
        into.write(self.answers[0])
        if len(self.answers) > 1:
            self.answers.pop(0)


@pytest.mark.parametrize("lost", [b"", archive()[:2048], archive()], ids=["all", "a file", "the mark"])
def test_a_copy_that_lost_its_end_is_made_again(lost: bytes, tmp_path: Path) -> None:
    cluster: Any = Exec(lost, archive() + WHOLE)
    file = io.BytesIO()
    _read_whole(cluster, "pod", file)
    files = list(_unpacked(file, tmp_path / "results"))
    assert [path.stat().st_size for path in files] == [600, 600]


def test_a_copy_that_is_never_whole_is_an_error_of_one_line() -> None:
    cluster: Any = Exec(archive())
    with pytest.raises(ClusterError, match="broke off 5 times"):
        _read_whole(cluster, "pod", io.BytesIO())
