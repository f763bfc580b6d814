"""`csi-job cache build | verify`."""

from collections.abc import Collection
from pathlib import Path

import click

from csi_job.cli.options import DATA, the_only_study, with_settings
from csi_job.config import LoadedSettings
from csi_job.logs import announced

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
    from csi_job.cache.build import ensure_cache

    finished, settings = finished_caches(loaded), loaded.settings
    show_cache(ensure_cache(settings.radiographs, settings.cache, settings.work), finished)


def finished_caches(loaded: LoadedSettings) -> list[str]:
    """Return the keys of the caches that are there already."""
    from csi_job.cache.manifest import finished_folders

    return [folder.name for folder in finished_folders(loaded.settings.folder.caches)]


def show_cache(folder: Path, finished: Collection[str]) -> None:
    """Print what a cache contains, with its warnings unless it was just built: a build logs them itself."""
    from csi_job.cache.manifest import load_info

    info = load_info(folder)
    splits = ", ".join(f"{num} {split}" for split, num in info.num_images.items())
    click.echo(f"{folder}: {splits} images from {info.num_patients} patients, {info.image_size_px} px")
    for warning in info.warnings if info.key in finished else ():
        click.echo(f"warning: {warning}")


@cache.command()
@with_settings(*DATA, *SPLIT, "study.name", "storage.url", study=the_only_study, default="the study's, else {}")
def verify(loaded: LoadedSettings) -> None:
    """Read the entire cache and compare it with its checksums.

    Without a study, the work folder's only cache is read, or the one of these settings.
    """
    from csi_job.cache.key import existing_cache
    from csi_job.cache.manifest import verify_cache

    settings = loaded.settings
    keys = [loaded.study.cache_key] if loaded.study else finished_caches(loaded)
    folder = existing_cache(settings.radiographs, settings.cache, settings.work, keys[0] if len(keys) == 1 else "")
    with announced(f"reading {folder}"):
        verify_cache(folder)
    click.echo(f"{folder} is intact")
