"""The chart rendered without a cluster."""

import functools
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import missing_service

Document = dict[str, Any]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
SECRET = {"database.existingSecret": "s"}  # the chart generates a password only if it sees a cluster
DEMO: dict[str, Any] = {"demo.enabled": True, **SECRET}


def render(values: dict[str, Any] | None = None, *, release: str = "r", files: Sequence[Path] = ()) -> list[Document]:
    """Every object of the chart, with the stages' Jobs that it describes."""
    result = helm(values, release=release, files=files)
    assert result.returncode == 0, result.stderr
    documents = [document for document in yaml.load_all(result.stdout, yaml.CSafeLoader) if document]
    stages = [document for document in documents if document["metadata"]["name"].endswith("-stages")]
    return documents + [yaml.load(text, yaml.CSafeLoader) for text in stages[0]["data"].values()]


def helm(
    values: dict[str, Any] | None = None,
    *,
    release: str = "r",
    files: Sequence[Path] = (),
    action: Sequence[str] = ("template",),
    chart: Path = CHART,
) -> subprocess.CompletedProcess[str]:
    if shutil.which("helm") is None:
        missing_service("helm is not installed")
    given = [f"--set-json={name}={json.dumps(value)}" for name, value in (values or {}).items()]
    given += [f"--values={path}" for path in files]
    command = ["helm", *action, release, str(chart), "--namespace", "here", *given]
    run = _run if files or chart != CHART else _run_once  # files may change
    return run(*command)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


_run_once = functools.cache(_run)


def probe(folder: Path, source: str, template: str, value: Any) -> subprocess.CompletedProcess[str]:
    """Render an extra template, which includes one of a file of the chart's, without a cluster."""
    if shutil.which("helm") is None:
        missing_service("helm is not installed")
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: probe\nversion: 0.1.0\n")
    shutil.copy(CHART / "templates" / source, folder / "templates")
    (folder / "templates" / "probe.yaml").write_text(template)
    command = ["helm", "template", "r", str(folder), f"--set-json=probe={json.dumps(value)}"]
    return _run(*command)


def pods(documents: list[Document]) -> dict[str, Document]:
    """The pod specification of each component."""
    found = {}
    for document in documents:
        component = document["metadata"].get("labels", {}).get("app.kubernetes.io/component", "")
        if document["kind"] == "Pod":
            found[component] = document["spec"]
        elif "template" in document.get("spec", {}):
            found[component] = document["spec"]["template"]["spec"]
    return found


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]
