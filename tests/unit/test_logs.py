import json
import logging
import re
import threading

import pytest

from csi_job import logs
from csi_job.logs import announced, set_up_logging


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger("csi_job")
    before = root.handlers, root.level, root.propagate
    yield
    root.handlers, root.level, root.propagate = before


def test_a_text_line_begins_with_its_time(capsys):
    set_up_logging("text")
    logging.getLogger("csi_job.x").info("trial %(trial)d starts", {"trial": 3})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d trial 3 starts\n", capsys.readouterr().err)


def test_a_json_line_has_the_values_of_its_message_as_fields(capsys):
    set_up_logging("json")
    values = {"trial": 3, "epoch": 2, "val_f1": 0.51237, "params": {"optimizer": "adam"}, "message": "not this one"}
    logging.getLogger("csi_job.x").warning("trial %(trial)d: epoch %(epoch)d, val_f1 %(val_f1).4f", values)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {**values, "message": "trial 3: epoch 2, val_f1 0.5124", "level": "warning", "logger": "csi_job.x"}


def test_only_a_slow_step_is_announced(capsys, monkeypatch):
    set_up_logging("text")
    with announced("a quick step"):
        pass
    said = threading.Event()
    monkeypatch.setattr(logs._root, "info", lambda _: said.set())
    monkeypatch.setattr(logs, "ANNOUNCE_AFTER_S", 0.0)
    with announced("a slow step"):
        assert said.wait(30)
    assert capsys.readouterr().err == ""


def test_a_warning_that_keeps_coming_is_logged_once_a_minute_with_its_count(caplog, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    warnings, was_logged = logs.RepeatedWarnings(logging.getLogger("csi_job.test")), list[bool]()
    for second in range(0, 130, 2):
        now = float(second)
        was_logged.append(warnings.log("away", outage=1))
        if second in {10, 20}:
            warnings.log("refused")
    assert caplog.messages == ["away", "refused", *["away (30 times in the last 60 s)"] * 2]
    line = json.loads(logs._JsonFormatter().format(caplog.records[-1]))
    assert {"outage": 1, "times": 30, "seconds": 60}.items() <= line.items()
    assert sum(was_logged) == caplog.text.count("away") == 3
