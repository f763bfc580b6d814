"""Removes from the environment what no pod needs, and compiles what every pod imports: `python image/slim.py FOLDER`.

Kept: all that torch.compile reads at run time (torch's and Triton's headers, every source file).
"""

from __future__ import annotations

import compileall
import hashlib
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# Packages of which all is kept: PyTorch looks for its own parts in ways of its own.
TORCH = ("cuda", "functorch", "nvidia", "torch", "torchgen", "torchvision", "triton")
UNUSED = (
    "kubernetes/aio",  # the client a second time, for asyncio
    "plotly/labextension",  # of notebooks
    "torch/bin/protoc",  # builds torch
    "torch/bin/protoc-*",
)
TESTS = ("test", "tests")
STATIC = "*.a"  # for linking programs, which nobody does here; Triton alone has 170 MB
MIN_COPY_BYTES = 100_000
# Third parties of csi_job: what importing them reads is compiled; all else is when it is first imported.
IMPORTED = """
import alembic.command, click, cmaes, gdcm, jinja2, kubernetes.client, kubernetes.config, kubernetes.stream, nibabel
import numpy, optuna, PIL.Image, plotly.graph_objects, plotly.io, plotly.subplots, psycopg2, pydantic, pydicom
import rich.live, rich.progress, safetensors.torch, scipy.stats, sklearn.ensemble, sklearn.metrics
import sqlalchemy.dialects.postgresql, sqlalchemy.dialects.sqlite, torch, torchvision.models, wandb, yaml
import optuna.importance, optuna.visualization, optuna.storages, optuna.samplers, optuna.pruners
plotly.graph_objects.Figure(plotly.graph_objects.Scatter(x=[1], y=[1])).to_json()
kubernetes.client.BatchV1Api, kubernetes.client.CoreV1Api
"""


def main(environment: Path) -> None:
    """Slim an environment in place and say by how much."""
    before = size_of(environment)
    site = next(environment.glob("lib/python3*/site-packages"))
    remove(unused(site))
    link_copies(site)
    python = str(environment / "bin" / "python")
    for name in TORCH:
        compileall.compile_dir(site / name, quiet=2, workers=0)
    subprocess.run([python, "-c", IMPORTED], check=True)
    print(f"{environment}: {before / 1e6:.0f} MB, now {size_of(environment) / 1e6:.0f} MB")


def unused(site: Path) -> Iterable[Path]:
    """Return the files and folders that go."""
    for pattern in UNUSED:
        yield from site.glob(pattern)
    yield from site.rglob(STATIC)
    for package in site.iterdir():
        if package.is_dir() and package.name not in TORCH:
            yield from (folder for name in TESTS for folder in package.rglob(name) if folder.is_dir())


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders, also those within others that went before."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def link_copies(site: Path) -> None:
    """Make one file of copies in one folder: wheels hold no links, so that a library lies there once a name."""
    for folder in {path.parent for path in site.rglob("*.so*")}:
        copies: dict[tuple[int, str], list[Path]] = defaultdict(list)
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.is_symlink() and path.stat().st_size > MIN_COPY_BYTES:
                copies[path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
        for first, *others in copies.values():
            for other in others:
                other.unlink()
                other.symlink_to(first.name)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
