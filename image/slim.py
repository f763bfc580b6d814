"""Removes from the environment what no pod needs, and compiles what every pod imports: `python image/slim.py FOLDER`.

Everything that torch.compile reads at run time stays: torch's and Triton's headers, and all source files.
"""

import compileall
import hashlib
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# These packages stay complete: PyTorch finds its own parts in unusual ways.
TORCH = ("cuda", "functorch", "nvidia", "torch", "torchgen", "torchvision", "triton")
UNUSED = (
    "kubernetes/aio",  # a second client, for asyncio
    "plotly/labextension",  # for notebooks
    "torch/bin/protoc",  # builds torch
    "torch/bin/protoc-*",
)
TESTS = ("test", "tests")
STATIC = "*.a"  # only for linking programs; 170 MB in Triton alone
MIN_COPY_BYTES = 100_000
# csi_job's dependencies: only the modules that these imports load are compiled in advance.
IMPORTED = """
import alembic.command, click, cmaes, gdcm, isal.isal_zlib, jinja2
import kubernetes.client, kubernetes.config, kubernetes.dynamic, kubernetes.stream
import nibabel, numpy, optuna, PIL.Image, plotly.graph_objects, plotly.io, plotly.subplots, psycopg2, pydantic, pydicom
import rich.live, rich.progress, safetensors.torch, scipy.stats, sklearn.ensemble, sklearn.metrics
import sqlalchemy.dialects.postgresql, sqlalchemy.dialects.sqlite, torch, torchvision.models, wandb, yaml
import optuna.importance, optuna.visualization, optuna.storages, optuna.samplers, optuna.pruners
plotly.graph_objects.Figure(plotly.graph_objects.Scatter(x=[1], y=[1])).to_json()
kubernetes.client.CoreV1Api
"""


def main(environment: Path) -> None:
    """Slim an environment in place and print by how much."""
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
    """Return the files and folders to remove."""
    for pattern in UNUSED:
        yield from site.glob(pattern)
    yield from site.rglob(STATIC)
    for package in site.iterdir():
        if package.is_dir() and package.name not in TORCH:
            yield from (folder for name in TESTS for folder in package.rglob(name) if folder.is_dir())


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders, which may be nested."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def link_copies(site: Path) -> None:
    """Replace copies in a folder by links: wheels can't hold links, so they contain a library once per name."""
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
    """Return the total size of all files in a folder, in bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
