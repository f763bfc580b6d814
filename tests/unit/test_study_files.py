"""Files of studies are whole or not there, and none is overwritten unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.files import STREAM, check_free, read_file, write_file


def test_a_file_that_exists_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check_free(path, STREAM, force=False)
    path.touch()
    with pytest.raises(ConfigurationError, match="--force"):
        check_free(STREAM, path, force=False)
    check_free(path, force=True)


def test_a_folder_in_the_way_is_refused_even_with_force(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder"):
        check_free(tmp_path, force=True)


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device", "link in a circle"])
def test_what_is_no_regular_file_is_refused_even_with_force(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to("/dev/null" if kind == "link to a device" else path)
    else:
        path = Path("/dev/null")
    with pytest.raises(ConfigurationError, match=f"no regular file, got '{path}'"):
        check_free(path, force=True)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_file_is_followed_and_stays(is_there: bool, tmp_path: Path) -> None:  # noqa: FBT001
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


def test_a_written_file_is_read_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_file(path, b"\0\r\n")
    write_file(path, b"\0\r\n2")
    assert read_file(path) == b"\0\r\n2"
    assert [*path.parent.iterdir()] == [path]


def test_a_place_that_cannot_be_written_or_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CsiJobError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", b"")
    with pytest.raises(ConfigurationError, match="No such file"):
        read_file(tmp_path / "none")


def test_the_streams_are_standard_output_and_input(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_file(STREAM, b"\x1f\x8b")
    assert capfdbinary.readouterr().out == b"\x1f\x8b"
