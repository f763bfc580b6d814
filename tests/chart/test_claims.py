"""An impossible change of an existing volume claim fails when the chart is rendered, by the value's name."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.chart import CHART, probe

OLD: dict[str, Any] = {
    "spec": {
        "storageClassName": "nfs",
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "50Gi"}},
    }
}


def change(folder: Path, **wanted: Any) -> subprocess.CompletedProcess[str]:
    """Render the chart's check of a change of an existing claim of 50Gi."""
    request: dict[str, Any] = {"old": OLD, "name": "r-work", "value": "work"}
    request |= {"size": "50Gi", "class": "", "mode": "ReadWriteMany"} | wanted
    return probe(folder, "_claim.tpl", '{{ include "csi-job.claimChange" .Values.probe }}', request)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"size": "20Gi"}, "work.size can't be changed from 50Gi to 20Gi: no claim can shrink"),
        ({"size": "51539607552"}, "work.size can't be changed"),
        ({"size": 500}, "work.size can't be changed from 50Gi to 500: no claim can shrink"),
        ({"class": "fast"}, 'work.storageClass can\'t be changed from "nfs" to "fast"'),
        ({"mode": "ReadWriteOnce"}, "work.accessMode can't be changed to ReadWriteOnce"),
    ],
)
def test_an_impossible_change_is_rejected(tmp_path, wanted, message):
    result = change(tmp_path, **wanted)
    assert result.returncode != 0
    assert message in result.stderr


@pytest.mark.parametrize(
    "wanted", [{}, {"size": "51200Mi"}, {"size": "1Ti"}, {"size": "1Ei"}, {"size": "1E"}, {"class": "nfs"}], ids=str
)
def test_a_possible_change_is_accepted(tmp_path, wanted):
    result = change(tmp_path, **wanted)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("given_by", "kept"), [("helm", "nfs"), ("the cluster", None)])
def test_a_claim_keeps_the_class_that_an_earlier_revision_gave_it(tmp_path, given_by, kept):
    """The API server would refuse to take it away; one that the cluster gave it would be taken away by a rollback."""
    fields = {"f:spec": {"f:storageClassName": {}}} if given_by == "helm" else {"f:spec": {"f:resources": {}}}
    old = {**OLD, "metadata": {"managedFields": [{"manager": "helm", "fieldsV1": fields}]}}
    result = probe(tmp_path, "_claim.tpl", 'kept: {{ include "csi-job.claimClass" .Values.probe }}', old)
    assert yaml.safe_load(result.stdout)["kept"] == kept


def test_a_claim_that_is_being_deleted_is_not_built_upon(tmp_path):
    """The API server accepts what is applied to it, then removes it with the data once the last pod has ended."""
    result = change(tmp_path, old={**OLD, "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    assert result.returncode != 0
    assert (
        "the claim r-work is being deleted, and its data with it; end the pods that still use it with" in result.stderr
    )


def test_nothing_outside_the_namespace_is_looked_up():
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    namespaces = re.findall(r'lookup "\S+" "\S+" (\S+)', templates)
    assert set(namespaces) == {".root.Release.Namespace", ".Release.Namespace"}
