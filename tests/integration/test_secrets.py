"""The database's password appears in nothing that a run writes, prints or shows in the process list."""

import time
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.integration.test_commands import data, run, start
from tests.support.postgres import guarded_server

PASSWORD = "Geheim/p@ss w:{0}%23"
FORMS = (PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), quote_plus(PASSWORD), "Geheim")


@pytest.fixture(scope="module")
def guarded():
    """A server that requires a password from `anna`."""
    with guarded_server(PASSWORD) as server:
        yield server


def test_a_run_with_tracking_and_a_database_crash_shows_no_password(guarded, phantoms, tmp_path, monkeypatch):
    work = tmp_path / "work"
    monkeypatch.setenv("CSI_JOB_STORAGE__URL", f"postgresql://anna:{quote(PASSWORD, safe='')}@/csi?host={guarded.data}")
    monkeypatch.setenv("CSI_JOB_TRACKING__WANDB_MODE", "offline")
    arguments = ("--n-trials", 2, "--wandb-project", "csi")
    run(work, "cache", "build", *data(phantoms))
    process = start(work, "hyperopt", *data(phantoms), *arguments)
    shown = []
    while not (work / "wandb").exists():
        assert process.poll() is None, process.communicate()
        shown += command_lines()
        time.sleep(0.2)
    with guarded.outage():
        shown += command_lines()
    shown += [part.encode() for part in process.communicate(timeout=240)]
    assert process.returncode == 0, shown[-1]
    shown += [part.encode() for name in ("status", "report") for part in run(work, name)]
    shown += [part.encode() for part in run(work, "config", "show")]

    files = [path for path in work.rglob("*") if path.is_file()]
    assert {"wandb", "models", "cache"} <= {path.relative_to(work).parts[0] for path in files}
    for content in (*shown, *(path.read_bytes() for path in files)):
        assert not [form for form in FORMS if form.encode() in content]


def command_lines():
    """The process list as any user of the machine sees it."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_bytes())
        except OSError:  # exited meanwhile
            continue
    return lines
