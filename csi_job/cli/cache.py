"""`csi-job cache build | verify`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from csi_job.cli.options import DATA, the_only_study, with_settings
from csi_job.config import LoadedSettings
from csi_job.logs import announced

if TYPE_CHECKING:
    from csi_job.cache.dataset import Cache

SPLIT = ("cache.normalisation", "radiographs.split.seed", "radiographs.max_corrupt_fraction", "cache.num_workers")


@click.group()
def cache() -> None:
    """Decode and check the radiographs once, and split them by patient."""


@cache.command()
@with_settings(*DATA, *SPLIT)
def build(loaded: LoadedSettings) -> None:
    """Build the cache.

    An interrupted build is resumed; a finished cache of the same data and settings is kept. Several builds on one
    work folder share the images.
    """
    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import ensure_cache

    finished = finished_caches(loaded)
    show_cache(ensure_cache(loaded.settings), finished)


def finished_caches(loaded: LoadedSettings) -> list[str]:
    """Return the keys of the caches that are there already."""
    from csi_job.cache.manifest import finished_folders

    return [folder.name for folder in finished_folders(loaded.settings.folder.caches)]


def show_cache(cache: Cache, finished: Collection[str]) -> None:
    """Print what a cache contains, with its warnings unless it was just built: a build logs them itself."""
    info = cache.info
    splits = ", ".join(f"{num} {split}" for split, num in info.num_images.items())
    click.echo(f"{cache.folder}: {splits} images from {info.num_patients} patients, {info.image_size_px} px")
    for warning in info.warnings if info.key in finished else ():
        click.echo(f"warning: {warning}")


@cache.command()
@with_settings(*DATA, *SPLIT, "study.name", "storage.url", study=the_only_study)
def verify(loaded: LoadedSettings) -> None:
    """Read the entire cache and compare it with its checksums.

    It is the one of the study, or the only one.
    """
    from csi_job.cache.manifest import verify_cache

    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import existing_cache

    keys = [loaded.study.cache_key] if loaded.study else finished_caches(loaded)
    folder = existing_cache(loaded.settings, keys[0] if len(keys) == 1 else "").folder
    verify_cache(folder)
    click.echo(f"{folder} is intact")
