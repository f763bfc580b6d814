"""The cache built: label table and images in, one finished folder out, or nothing."""

from __future__ import annotations

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from csi_job.cache.decode_pool import decode_images, num_cores
from csi_job.cache.key import Source, only_cache, read_source, remember_request, remembered_key
from csi_job.cache.manifest import (
    MANIFEST,
    SPLIT_TABLE,
    CachedImage,
    CacheInfo,
    images_file,
    manifest_text,
    split_table_text,
)
from csi_job.cache.problems import problems_listed, write_problems
from csi_job.cache.settings import CacheSettings
from csi_job.cache.slot_arrays import SlotArrays
from csi_job.errors import DataError, Problem
from csi_job.files import digest_file, flush_folder, locked, locked_if_free, write_atomic
from csi_job.logs import get_logger, progress
from csi_job.radiographs.identity import pseudonym
from csi_job.radiographs.settings import RadiographsSettings, SplitSettings
from csi_job.radiographs.split import SPLITS, check_grades, split_patients
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.work_folder import WorkFolder

_ABANDONED_S = 7 * 24 * 3600.0  # an interrupted build that nobody went on with for so long is removed
_NUM_ROWS_NAMED = 10

_logger = get_logger(__name__)


def build_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Path:
    """Decode every radiograph once; a cache that is there already is returned at once.

    The folder is named by its content. It appears by one rename when it is whole. An interrupted build is gone on
    with, and of two processes that build the same one waits for the other.

    Args:
        radiographs: label table, images, and their split.
        cache: size and normalisation of the images.
        work: the work folder; images that cannot be used are listed in `problems.csv` there.

    Returns:
        The finished cache's folder, `<work>/cache/<key>`.

    Raises:
        DataError: table, images or split cannot be used, or the folder cannot be written.
        ConfigurationError: the table or the folder of images is not set.

    """
    root = WorkFolder(work).caches
    with problems_listed(work):
        root.mkdir(parents=True, exist_ok=True)
        source = read_source(radiographs, cache, work)
        folder = root / source.key
        if not folder.exists():
            waiting = f"another process is building cache {source.key}; waiting for it"
            with locked(root / f".{source.key}.lock", waiting):
                if not folder.exists():
                    _build(source, radiographs, cache, work)
        remember_request(root, radiographs, cache, source.key)
    return folder


def find_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Path | None:
    """Return the finished cache for these settings, or None; nothing is decoded.

    Where the data is not mounted, as in pods that only train, it is the cache last built for the same settings.
    Where no data is named, it is the only cache of this size, normalisation and split.

    Raises:
        DataError: the data is there but cannot be used.
        ConfigurationError: half of the data is named, or none and several caches fit.

    """
    root = WorkFolder(work).caches
    if not root.is_dir():
        return None
    named = [path for path in (radiographs.labels, radiographs.images) if path is not None]
    if not named:
        return only_cache(root, radiographs, cache)
    if len(named) == 1 or any(path.exists() for path in named):
        with problems_listed(work):
            key: str | None = read_source(radiographs, cache, work).key
    else:
        key = remembered_key(root, radiographs, cache)
    return root / key if key and (root / key).is_dir() else None


def _build(source: Source, radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> None:
    """Decode into a folder of another name, and rename it when all is on the disk."""
    root = WorkFolder(work).caches
    partial, marks = root / f".{source.key}.partial", root / f".{source.key}.marks"
    _remove_abandoned(root)
    split_N = split_patients(source.table, radiographs.split)
    check_grades(class_counts(source.table.zones_NZ, split_N))
    with _opened(partial, marks, split_N, cache.image_size_px) as arrays:
        corrupt = _decode(source, arrays, radiographs, cache)
        arrays.flush()
        arrays.drop([*corrupt])
    source.check_unchanged()
    kept = [index for index in range(len(source.table)) if index not in corrupt]
    info = describe_cache(source, split_N, kept, partial, radiographs.split, cache)
    flush_folder(partial)
    partial.rename(root / source.key)
    flush_folder(root)
    marks.unlink(missing_ok=True)
    for warning in info.warnings:
        _logger.warning("%s", warning)
    _tell_corrupt(work, corrupt)


def _opened(partial: Path, marks: Path, split_N: np.ndarray, side_px: int) -> SlotArrays:
    """Make or open the unfinished arrays; where there is no room for them, nothing is left behind."""
    partial.mkdir(exist_ok=True)
    try:
        return SlotArrays(partial, marks, split_N, side_px)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        marks.unlink(missing_ok=True)
        needed_mb = math.ceil(len(split_N) * side_px * side_px / 1e6)
        what = f"no room for the cache ({error.strerror})"
        raise DataError(
            what,
            got=str(partial.parent),
            allowed=f"{needed_mb} MB free",
            hint="Free space, or choose another --work folder",
        ) from None


def _decode(
    source: Source, arrays: SlotArrays, radiographs: RadiographsSettings, cache: CacheSettings
) -> dict[int, Problem]:
    """Fill the empty slots; return the images that cannot be read, if they are few enough."""
    num_images = len(source.table)
    corrupt: dict[int, Problem] = {}
    todo = arrays.empty_slots
    decoded = decode_images(
        ((index, source.paths[index]) for index in todo),
        cache.image_size_px,
        radiographs.max_image_side_px,
        cache.num_workers or num_cores(),
    )
    with closing(decoded), progress("caching radiographs", num_images, "images") as advance:
        advance(num_images - len(todo))
        for index, pixels_or_problem in decoded:
            if isinstance(pixels_or_problem, str):
                corrupt[index] = source.problem(index, pixels_or_problem)
                _check_few(corrupt, num_images, radiographs.max_corrupt_fraction)
            else:
                arrays.fill(index, pixels_or_problem)
            advance(1)
    return corrupt


def _check_few(corrupt: dict[int, Problem], num_images: int, max_fraction: float) -> None:
    if len(corrupt) > max_fraction * num_images:
        raise DataError(
            f"{len(corrupt)} of {num_images} images cannot be read, the build stops",
            allowed=f"a share of {max_fraction:g} (radiographs.max_corrupt_fraction)",
            problems=corrupt.values(),
        )


def _remove_abandoned(root: Path) -> None:
    """Remove what interrupted builds of other caches left long ago."""
    for partial in root.glob(".*.partial"):
        key = partial.name.removeprefix(".").removesuffix(".partial")
        marks = root / f".{key}.marks"
        touched = max(path.stat().st_mtime for path in (partial, marks) if path.exists())
        if time.time() - touched > _ABANDONED_S:
            with locked_if_free(root / f".{key}.lock") as held:
                if held:
                    shutil.rmtree(partial, ignore_errors=True)
                    marks.unlink(missing_ok=True)


def _tell_corrupt(work: Path, corrupt: dict[int, Problem]) -> None:
    """List the images left out, or remove the list of an earlier build."""
    if not corrupt:
        WorkFolder(work).problems.unlink(missing_ok=True)
        return
    path = write_problems(work, corrupt.values())
    rows = sorted(problem.row or 0 for problem in corrupt.values())
    named = ", ".join(map(str, rows[:_NUM_ROWS_NAMED])) + (", …" if len(rows) > _NUM_ROWS_NAMED else "")
    _logger.warning("the images left out are listed in %s: rows %s", path, named)


def describe_cache(
    source: Source, split_N: np.ndarray, kept: Sequence[int], folder: Path, split: SplitSettings, cache: CacheSettings
) -> CacheInfo:
    """Write split table and manifest of finished arrays.

    Args:
        source: all N images.
        split_N: their splits.
        kept: indices of those in the arrays, ascending.
        folder: where the arrays lie.
        split: the settings of the split.
        cache: the settings of the cache.

    Raises:
        DataError: what is left lacks a split, or a zone's grades.
        OSError: the folder cannot be written.

    """
    rows = _split_rows(source, split_N, kept)
    write_atomic(folder / SPLIT_TABLE, split_table_text(rows))
    counts_SZK = class_counts(source.table.zones_NZ[kept], split_N[kept])
    warnings = (*_data_warnings(source, split_N, kept), *check_grades(counts_SZK))
    info = CacheInfo(
        key=source.key,
        image_size_px=cache.image_size_px,
        normalisation=cache.normalisation,
        split_seed=split.seed,
        split_shares=(split.train, split.validation, split.test),
        num_images={name: int((split_N[kept] == place).sum()) for place, name in enumerate(SPLITS)},
        num_patients=len({source.table.patient_ids[index] for index in kept}),
        num_corrupt=len(source.table) - len(kept),
        class_counts=dict(zip(SPLITS, counts_SZK.tolist(), strict=True)),
        warnings=warnings,
        files={name: digest_file(folder / name) for name in (SPLIT_TABLE, *map(images_file, SPLITS))},
    )
    for name, num_images in info.num_images.items():
        if num_images == 0:
            raise DataError(f"no image is left in the {name} split", hint="Repair the images that cannot be read")
    write_atomic(folder / MANIFEST, manifest_text(info))
    return info


def class_counts(zones_NZ: np.ndarray, split_N: np.ndarray) -> np.ndarray:
    """Count the images by split, zone and class, `[3, 6, 5]`."""
    counts_SZK = np.zeros((len(SPLITS), NUM_ZONES, NUM_CLASSES), dtype=np.int64)
    zones_NZ_index = np.broadcast_to(np.arange(NUM_ZONES), zones_NZ.shape)
    np.add.at(counts_SZK, (split_N[:, None], zones_NZ_index, zones_NZ), 1)
    return counts_SZK


def _split_rows(source: Source, split_N: np.ndarray, kept: Sequence[int]) -> list[CachedImage]:
    """Return the rows of the split table, ordered as the arrays are."""
    table = source.table
    patients = {patient: place for place, patient in enumerate(sorted(set(table.patient_ids)))}
    return [
        CachedImage(
            split=SPLITS[split_N[index]],
            image=pseudonym(table.file_ids[index], source.identity_key),
            patient=pseudonym(table.patient_ids[index], source.identity_key),
            patient_index=patients[table.patient_ids[index]],
            zones=tuple(table.zones_NZ[index].tolist()),
        )
        for index in sorted(kept, key=lambda index: (split_N[index], index))
    ]


def _data_warnings(source: Source, split_N: np.ndarray, kept: Sequence[int]) -> tuple[str, ...]:
    warnings = []
    num_corrupt = len(source.table) - len(kept)
    if num_corrupt:
        warnings.append(f"{num_corrupt} of {len(source.table)} images cannot be read and are left out")
    if not source.table.has_patients:
        warnings.append("no PatientID: images of one patient may lie in several splits")
    splits_of_content: dict[str, set[int]] = defaultdict(set)
    for index in kept:
        splits_of_content[source.digests[index].sha256].add(int(split_N[index]))
    num_shared = sum(len(splits) > 1 for splits in splits_of_content.values())
    if num_shared:
        warnings.append(f"{num_shared} image files lie in several splits, as copies under other names")
    return tuple(warnings)
