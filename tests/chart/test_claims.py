"""A claim that is there already is left as it is, or the value that can't be met is named at render."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.chart import CHART
from tests.conftest import missing_service

GROWING = {"allowVolumeExpansion": True}
FIXED = {"allowVolumeExpansion": False}
ASKS = '{{ include "csi-job.claimChange" .Values.change }}'


def change(folder: Path, known: dict[str, Any], **wanted: str) -> subprocess.CompletedProcess[str]:
    """Render the chart's own judgement of a change of a claim of 50Gi, as if the cluster had been looked at."""
    if shutil.which("helm") is None:
        missing_service("helm is not installed")
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: asks\nversion: 0.1.0\n")
    shutil.copy(CHART / "templates" / "_claim.tpl", folder / "templates")
    (folder / "templates" / "ask.yaml").write_text(ASKS)
    requests = {"requests": {"storage": "50Gi"}}
    old = {"spec": {"storageClassName": "nfs", "accessModes": ["ReadWriteMany"], "resources": requests}}
    asked = {"old": old, "known": known, "name": "r-work", "value": "work"}
    asked |= {"size": "50Gi", "class": "", "mode": "ReadWriteMany"} | wanted
    command = ["helm", "template", "r", str(folder), f"--set-json=change={json.dumps(asked)}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("known", "wanted", "complaint"),
    [
        (FIXED, {"size": "100Gi"}, 'work.size can\'t be changed from 50Gi to 100Gi: the storage class "nfs"'),
        (GROWING, {"size": "20Gi"}, "work.size can't be changed from 50Gi to 20Gi: no claim can shrink"),
        (FIXED, {"size": "51539607552"}, "work.size can't be changed"),
        (GROWING, {"class": "fast"}, 'work.storageClass can\'t be changed from "nfs" to "fast"'),
        (GROWING, {"mode": "ReadWriteOnce"}, "work.accessMode can't be changed to ReadWriteOnce"),
    ],
)
def test_a_change_that_the_claim_can_not_take_is_named(
    tmp_path: Path, known: dict[str, Any], wanted: dict[str, str], complaint: str
) -> None:
    result = change(tmp_path, known, **wanted)
    assert result.returncode != 0
    assert complaint in result.stderr


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (FIXED, {}),
        (FIXED, {"size": "51200Mi"}),
        (GROWING, {"size": "1Ti"}),
        ({}, {"size": "60Gi"}),
        (FIXED, {"class": "nfs"}),
    ],
)
def test_a_change_that_the_claim_can_take_is_let_through(
    tmp_path: Path, known: dict[str, Any], wanted: dict[str, str]
) -> None:
    result = change(tmp_path, known, **wanted)
    assert result.returncode == 0, result.stderr
