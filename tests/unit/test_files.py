import csv
import errno
import hashlib
import io
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csi_job import files
from csi_job.errors import ConfigurationError, CsiJobError


def test_a_path_that_cannot_be_looked_at_is_not_said_to_be_missing(tmp_path):
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.touch()
    loop.symlink_to(loop)
    found = {path: (files.exists(path), files.is_file(path), files.is_folder(path)) for path in (file, tmp_path)}
    assert found == {file: (True, True, False), tmp_path: (True, False, True)}
    for ask in (files.exists, files.is_file, files.is_folder):
        assert not any(map(ask, (tmp_path / "none", file / "below", loop, tmp_path / "\0")))
        with pytest.raises(OSError, match="too long"):
            ask(tmp_path / ("x" * 300))


def test_a_write_is_atomic(tmp_path):
    path = tmp_path / "file"
    files.write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    files.write_atomic(path, "new ü\r\n")
    assert path.read_bytes() == "new ü\r\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_removes_what_killed_processes_left_of_the_same_file_an_hour_ago(tmp_path):
    names = [".a[1].csv.7.0123abcd", ".a[1].csv.8.0123abcd", ".a1.csv.7.0123abcd", "a[1].csv.7.0123abcd"]
    names += [".a[1].csv.bak.20260101", ".a[1].csv.7.0123ABCD", ".a[1].csv.7.0123abcde", ".a[1].csv..0123abcd"]
    for name in names:
        (tmp_path / name).touch()
        if ".8." not in name:
            os.utime(tmp_path / name, (0, time.time() - files.STALE_S - 60))
    files.write_atomic(tmp_path / "a[1].csv", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].csv", *names[1:]}


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request):
    old = os.umask(request.param)
    yield
    os.umask(old)


def modes(root: Path) -> set[tuple[str, int]]:
    """Return the permissions of every folder and file below."""
    return {("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode)) for path in root.rglob("*")}


def write_everything(root: Path) -> None:
    files.write_file(root / "a" / "b" / "report", "text")
    with files.replacing(files.make_folder(root / "c") / "weights") as temporary:
        temporary.write_bytes(b"text")
    with files.locked(root / "c" / "lock", ""), files.locked_if_free(root / "c" / "other"):
        pass


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("mode", "of_folders", "of_files"),
    [(0o755, 0o700, 0o600), (0o2775, 0o2770, 0o660)],  # the other passes on its group, as a volume with fsGroup
)
def test_only_the_owner_or_the_group_passed_on_can_read_what_is_created(tmp_path, mode, of_folders, of_files):
    tmp_path.chmod(mode)
    write_everything(tmp_path)
    assert modes(tmp_path) == {("folder", of_folders), ("file", of_files)}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode  # it was there


SHARE = """
import os, sys
from pathlib import Path
from csi_job.files import locked, make_folder, write_atomic
user, *groups = map(int, sys.argv[2:])
os.setgroups(groups)
os.setgid(user)
os.setuid(user)
os.umask(0o077)
folder = make_folder(Path(sys.argv[1], "a", "b"))
with locked(folder / "lock", ""):
    write_atomic(folder / "file", "text")
    write_atomic(folder / str(user), "text")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_two_users_of_a_group_share_a_folder_that_passes_on_its_group():
    with tempfile.TemporaryDirectory() as root:
        volume = Path(root, "volume")
        volume.mkdir()
        os.chown(volume, 0, 4242)
        volume.chmod(0o2775)
        Path(root).chmod(0o711)
        runs = [
            subprocess.run([sys.executable, "-c", SHARE, volume, *ids], capture_output=True, check=False, text=True)
            for ids in (("2001", "4242"), ("2002", "4242"), ("3000",))
        ]
        assert [run.stderr for run in runs[:2]] == ["", ""]
        assert runs[2].stderr.endswith(f"Permission denied: '{volume}/a/b'\n")
        assert sorted(path.name for path in Path(volume, "a", "b").iterdir()) == ["2001", "2002", "file", "lock"]


def test_new_names_survive_a_power_failure(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def record(descriptor):
        fsync(descriptor)
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", record)
    folder = files.make_folder(tmp_path / "a" / "b" / "c")
    assert flushed == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    flushed.clear()
    files.make_folder(folder)
    assert flushed == []
    with files.replacing(folder / "file") as temporary:
        pass
    assert flushed == [temporary, folder]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EINVAL, ""), (errno.EIO, "check the disk, or "), (errno.ENOSPC, "free up some space, or ")],
)
def test_only_a_file_system_that_flushes_no_folder_may_leave_one_unflushed(number, advice, tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if not advice:
        assert files.write_file(tmp_path / "a" / "file", "text").read_text() == "text"
        return
    with pytest.raises(CsiJobError) as caught:
        files.write_file(tmp_path / "file", "text")
    assert not (tmp_path / "file").exists()
    message = f"file cannot be written ({os.strerror(number)}), got '{tmp_path}'; {advice}choose another folder"
    assert str(caught.value) == message


def test_text_that_a_spreadsheet_would_evaluate_gets_an_apostrophe_and_numbers_stay_numbers():
    formulas = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "-", "-1_0", "+x", "\uff1d1"]
    others = ["-12", "+1.5", "-.5", "-1e-5", -0.5, 7, "a=1", "'=1", ""]
    text = files.csv_text(["=name"], [formulas, others, ["\r=1", "a\r\n=1"]])
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=";")) == [
        ["'=name"],
        [f"'{cell}" for cell in formulas],
        [str(cell) for cell in others],
        ["' =1", "a =1"],
    ]


def test_no_formula_appears_where_a_spreadsheet_splits_at_another_separator():
    text = io.StringIO()
    files.write_csv(text, ["name", "json"], [['a;"=1+1', "[1, -0.5]"]])
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [["name", "json"], ["a;\"'=1+1", "[1, -0.5]"]]
    assert files.csv_text(["a,=1", "b;=1", "c\t@x", "d, e"], []) == "a,'=1;\"b;=1\";c\t'@x;d, e\n"
    assert files.csv_text([",=1", ",-1.5", ",-1,2", ",-x"], []) == ",'=1;,-1.5;,-1,2;,'-x\n"
    assert files.csv_text([",-1\t+x", "a\t-1,5+x"], []) == ",'-1\t'+x;a\t'-1,5+x\n"


def test_replacing_shows_the_new_content_only_at_the_end_and_nothing_of_a_failure(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), files.replacing(path) as temporary:  # noqa: PT012 - what fails midway
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_kept_without_force_and_a_folder_even_with_it(tmp_path):
    path = tmp_path / "file"
    files.check_free(path, files.STREAM, force=False)
    path.touch()
    with pytest.raises(ConfigurationError, match="--force"):
        files.check_free(files.STREAM, path, force=False)
    files.check_free(path, force=True)
    with pytest.raises(ConfigurationError, match="folder"):
        files.check_free(tmp_path, force=True)


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device", "link to itself"])
def test_anything_but_a_regular_file_is_refused_even_with_force(kind, tmp_path):
    path = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to("/dev/null" if kind == "link to a device" else path)
    else:
        path = Path("/dev/null")
    with pytest.raises(ConfigurationError, match=f"not a regular file, got '{path}'"):
        files.check_free(path, force=True)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_file_is_followed_and_kept(is_there, tmp_path):
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(Path("there") / "file")
    if is_there:
        files.write_file(file, b"old")
        with pytest.raises(ConfigurationError, match="--force"):
            files.check_free(link, force=False)
    files.check_free(link, force=True)
    files.write_file(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"


def test_a_written_file_is_read_back_and_a_failed_write_is_explained_in_one_line(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_file(path, b"\0\r\n")
    assert files.write_file(path, b"\0\r\n2") == path
    assert path.read_bytes() == b"\0\r\n2"
    assert [*path.parent.iterdir()] == [path]
    (tmp_path / "file").touch()
    with pytest.raises(CsiJobError, match="cannot be written"):
        files.write_file(tmp_path / "file" / "below", b"")
    with pytest.raises(ConfigurationError, match=r"cannot be locked \(Not a directory\)"):
        files.locked(tmp_path / "file" / "lock", "").__enter__()


def test_the_stream_is_standard_output(capfdbinary):
    files.write_file(files.STREAM, b"\x1f\x8b")
    assert capfdbinary.readouterr().out == b"\x1f\x8b"


def test_json_is_read_back_if_it_is_an_object(tmp_path):
    path = tmp_path / "file.json"
    assert files.read_json(path) is None
    files.write_atomic(path, files.json_text({"name": "ü"}))
    assert files.read_json(path) == {"name": "ü"}
    for damaged in ("[1]", '{"name"', "[" * 100_000, "\xff"):
        path.write_text(damaged, encoding="latin-1")
        assert files.read_json(path) is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.json_text({"value": float("nan")})


def test_digests_are_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert files.digest_file(tmp_path / "file") == files.digest(b"content") == files.digest("content")
    assert files.digest("content") == hashlib.sha256(b"content").hexdigest()
    assert (
        files.digest_json({"a": 1, "b": 2}) == files.digest_json({"b": 2, "a": 1}) == files.digest('{"a": 1, "b": 2}')
    )


def test_a_lock_is_waited_for_and_freed(tmp_path, monkeypatch):
    order = []
    held, waited = threading.Event(), threading.Event()
    monkeypatch.setattr("csi_job.files.logger.info", lambda message: (order.append(message), waited.set()))

    def hold():
        with files.locked(tmp_path / "lock", ""):
            order.append("first")
            held.set()
            assert waited.wait(60)
            order.append("freed")

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(hold)
        assert held.wait(60)
        with files.locked_if_free(tmp_path / "lock") as free:
            assert not free
        with files.locked(tmp_path / "lock", "waiting"):
            order.append("second")
        holder.result()
    assert order == ["first", "waiting", "freed", "second"]
    with files.locked_if_free(tmp_path / "lock") as free:
        assert free
