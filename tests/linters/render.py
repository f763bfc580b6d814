"""Renders for linters what a cluster would get, one file per set of values: `python tests/linters/render.py FOLDER`.

The stages' Jobs are text in a ConfigMap, which linters do not read; here they are written as objects.
Every set is installed by digest from a registry, as docs/kubernetes.md recommends; nothing else is added.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0123456789abcdef" * 4
BY_DIGEST = (
    "--set=global.imageRegistry=registry.example.org",
    f"--set=image.digest={DIGEST}",
    f"--set=database.image.digest={DIGEST}",
)
NOT_LINTED = ("kueue", "openshift")  # the cluster itself sets what the linters look for: CONTRIBUTING.md, Changes
SECRET = "--set=database.existingSecret=database"
DATA = "--set=data.existingClaim=radiographs"
SETS: dict[str, tuple[str, ...]] = {
    "default": (DATA,),
    "demo": ("--set=demo.enabled=true",),
    "dashboard": (DATA, "--set=dashboard.enabled=true"),
    "pretrained": (DATA, "--set=job.trial.pretrained=imagenet"),
}


def main(folder: Path) -> None:
    """Render every set of values, every example and the plain manifests."""
    paths = [path for path in sorted((ROOT / "helm/examples").glob("*.yaml")) if path.stem not in NOT_LINTED]
    examples = {path.stem: (DATA, f"--values={path}") for path in paths}
    for name, values in (SETS | examples).items():
        command = ["helm", "template", "study", str(ROOT / "helm"), "--namespace=study", SECRET, *values, *BY_DIGEST]
        write(folder / f"{name}.yaml", yaml.safe_load_all(run(command)))
    with tempfile.TemporaryDirectory() as manifests:
        run(["sh", str(ROOT / "k8s/render.sh"), manifests, *BY_DIGEST])
        write(folder / "k8s.yaml", yaml.safe_load_all(run(["kubectl", "kustomize", manifests])))


def run(command: Sequence[str]) -> str:
    """Return what a command prints; its errors go to stderr."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def write(path: Path, documents: Iterator[Any]) -> None:
    """Write objects to one file, followed by the Jobs and the pod from the ConfigMap of the stages."""
    objects = [document for document in documents if document]
    (stages,) = [item for item in objects if item["metadata"]["name"].endswith("-stages")]
    extracted = [yaml.safe_load(text) for text in stages["data"].values()]
    path.write_text(yaml.safe_dump_all([*objects, *extracted]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
