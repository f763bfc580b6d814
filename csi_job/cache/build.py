"""The cache built: label table and images in, one finished folder out, or nothing."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csi_job.cache.arrays import SlotArrays
from csi_job.cache.content import DigestIndex, ImageDigest, cache_key, stat_of
from csi_job.cache.decoders import decode_images, num_cores
from csi_job.cache.files import flush_folder, locked, locked_if_free, write_whole
from csi_job.cache.settings import CacheSettings
from csi_job.cache.store import (
    MANIFEST,
    SPLIT_TABLE,
    CachedImage,
    CacheInfo,
    digest_file,
    images_file,
    load_info,
    manifest_text,
    split_table_text,
    verify_cache,
)
from csi_job.errors import ConfigurationError, DataError, Problem
from csi_job.logs import get_logger, progress
from csi_job.radiographs.identity import load_key, pseudonym
from csi_job.radiographs.read import find_images
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.split import SPLITS, check_grades, split_patients
from csi_job.radiographs.table import LabelTable, read_table
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES

__all__ = ["build_cache", "find_cache", "verify_cache"]

CACHE_FOLDER = "cache"
PROBLEMS_FILE = "problems.csv"
_IDENTITY_KEY = "identity.key"
_DIGESTS = "digests.json"
_REQUESTS = "requests.json"
_PRIVATE_MODE = 0o600
_ABANDONED_S = 7 * 24 * 3600.0  # an interrupted build that nobody went on with for so long is removed

_logger = get_logger(__name__)


@dataclass(frozen=True)
class _Source:
    """The checked input of a build: N rows in the order of their FileIDs."""

    table: LabelTable
    paths: tuple[Path, ...]
    digests: tuple[ImageDigest, ...]
    key: str
    identity_key: bytes


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
    root = work / CACHE_FOLDER
    with _errors_told(work):
        root.mkdir(parents=True, exist_ok=True)
        source = _read_source(radiographs, cache, root)
        folder = root / source.key
        if not folder.exists():
            waiting = f"another process is building cache {source.key}; waiting for it"
            with locked(root / f".{source.key}.lock", waiting):
                if not folder.exists():
                    _build(source, radiographs, cache, work)
        _remember_request(root, radiographs, cache, source.key)
    return folder


def find_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Path | None:
    """Return the finished cache for these settings, or None; nothing is decoded.

    Where the data is not mounted, as in pods that only train, it is the cache last built for the same settings.
    Where no data is named, it is the only cache of this size, normalisation and split.

    Raises:
        DataError: the data is there but cannot be used.
        ConfigurationError: no data is named and several caches fit.

    """
    root = work / CACHE_FOLDER
    if not root.is_dir():
        return None
    if radiographs.labels is None and radiographs.images is None:
        return _only_cache(root, radiographs, cache)
    if (
        radiographs.labels is None
        or radiographs.images is None
        or radiographs.labels.exists()
        or radiographs.images.exists()
    ):
        with _errors_told(work):
            key = _read_source(radiographs, cache, root).key
    else:
        key = _requests(root).get(_request(radiographs, cache), "")
    return root / key if key and (root / key).is_dir() else None


def _build(source: _Source, radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> None:
    """Decode into a folder of another name, and rename it when all is on the disk."""
    root = work / CACHE_FOLDER
    partial, marks = root / f".{source.key}.partial", root / f".{source.key}.marks"
    _remove_abandoned(root)
    split_N = split_patients(source.table, radiographs.split)
    check_grades(_class_counts(source.table.zones_NZ, split_N))
    partial.mkdir(exist_ok=True)
    with SlotArrays(partial, marks, split_N, cache.image_size_px) as arrays:
        corrupt = _decode(source, arrays, radiographs, cache)
        arrays.flush()
        arrays.drop([*corrupt])
    _check_unchanged(source)
    _write_description(source, split_N, corrupt, partial, radiographs, cache)
    flush_folder(partial)
    partial.rename(root / source.key)
    flush_folder(root)
    marks.unlink(missing_ok=True)
    _tell_corrupt(work, source, corrupt)


def _decode(
    source: _Source, arrays: SlotArrays, radiographs: RadiographsSettings, cache: CacheSettings
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
    with progress("caching radiographs", num_images, "images") as advance:
        advance(num_images - len(todo))
        for index, pixels_or_problem in decoded:
            if isinstance(pixels_or_problem, str):
                corrupt[index] = _problem(source, index, pixels_or_problem)
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


def _write_description(
    source: _Source,
    split_N: np.ndarray,
    corrupt: dict[int, Problem],
    folder: Path,
    radiographs: RadiographsSettings,
    cache: CacheSettings,
) -> None:
    """Write the split table and, last, the manifest."""
    kept = [index for index in range(len(source.table)) if index not in corrupt]
    rows = _split_rows(source, split_N, kept)
    write_whole(folder / SPLIT_TABLE, split_table_text(rows))
    counts_SZK = _class_counts(source.table.zones_NZ[kept], split_N[kept])
    warnings = check_grades(counts_SZK)
    if not source.table.has_patients:
        warnings = ("no PatientID: images of one patient may lie in several splits", *warnings)
    if corrupt:
        warnings = (f"{len(corrupt)} of {len(source.table)} images cannot be read and are left out", *warnings)
    split = radiographs.split
    info = CacheInfo(
        key=source.key,
        image_size_px=cache.image_size_px,
        normalisation=cache.normalisation,
        split_seed=split.seed,
        split_shares=(split.train, split.validation, split.test),
        num_images={name: int((split_N[kept] == place).sum()) for place, name in enumerate(SPLITS)},
        num_patients=len({row.patient for row in rows}),
        num_corrupt=len(corrupt),
        class_counts=dict(zip(SPLITS, counts_SZK.tolist(), strict=True)),
        warnings=warnings,
        files={name: digest_file(folder / name) for name in (SPLIT_TABLE, *map(images_file, SPLITS))},
    )
    for name, num_images in info.num_images.items():
        if num_images == 0:
            raise DataError(f"no image is left in the {name} split", hint="Repair the images listed")
    for warning in warnings:
        _logger.warning(warning)
    write_whole(folder / MANIFEST, manifest_text(info))


def _split_rows(source: _Source, split_N: np.ndarray, kept: Sequence[int]) -> list[CachedImage]:
    """Return the rows of the split table, ordered as the arrays are."""
    patients = {patient: place for place, patient in enumerate(sorted(set(source.table.patient_ids)))}
    ordered = sorted(kept, key=lambda index: (split_N[index], index))
    return [
        CachedImage(
            split=SPLITS[split_N[index]],
            image=pseudonym(source.table.file_ids[index], source.identity_key),
            patient=pseudonym(source.table.patient_ids[index], source.identity_key),
            patient_index=patients[source.table.patient_ids[index]],
            zones=tuple(source.table.zones_NZ[index].tolist()),
        )
        for index in ordered
    ]


def _class_counts(zones_NZ: np.ndarray, split_N: np.ndarray) -> np.ndarray:
    """Count the images by split, zone and class, `[3, 6, 5]`."""
    counts_SZK = np.zeros((len(SPLITS), NUM_ZONES, NUM_CLASSES), dtype=np.int64)
    zones = np.broadcast_to(np.arange(NUM_ZONES), zones_NZ.shape)
    np.add.at(counts_SZK, (split_N[:, None], zones, zones_NZ), 1)
    return counts_SZK


def _read_source(radiographs: RadiographsSettings, cache: CacheSettings, root: Path) -> _Source:
    if radiographs.labels is None or radiographs.images is None:
        missing = "radiographs.labels" if radiographs.labels is None else "radiographs.images"
        raise ConfigurationError(f"{missing} is not set", hint="Give --labels TABLE and --images FOLDER")
    table = _sorted_by_file(read_table(radiographs.labels, radiographs))
    paths = find_images(radiographs.images, table.file_ids, table.rows)
    identity_key = load_key(root / _IDENTITY_KEY)
    digests = tuple(DigestIndex(root / _DIGESTS, identity_key).digest(paths))
    key = cache_key(table, digests, radiographs, cache)
    return _Source(table, paths, digests, key, identity_key)


def _sorted_by_file(table: LabelTable) -> LabelTable:
    """Return the table in the order of its FileIDs, so that a table sorted anew gives the same cache."""
    order = sorted(range(len(table)), key=lambda index: table.file_ids[index])
    return LabelTable(
        file_ids=tuple(table.file_ids[index] for index in order),
        patient_ids=tuple(table.patient_ids[index] for index in order),
        rows=tuple(table.rows[index] for index in order),
        zones_NZ=table.zones_NZ[order],
        has_patients=table.has_patients,
    )


def _check_unchanged(source: _Source) -> None:
    changed = [
        _problem(source, index, "changed while the cache was built")
        for index, (path, digest) in enumerate(zip(source.paths, source.digests, strict=True))
        if digest.stat is not None and stat_of(path) != digest.stat
    ]
    if changed:
        raise DataError("images changed while the cache was built", problems=changed, hint="Run it again")


def _problem(source: _Source, index: int, what: str) -> Problem:
    return Problem(what, row=source.table.rows[index], file_id=source.table.file_ids[index])


def _only_cache(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> Path | None:
    split = radiographs.split
    wanted = (cache.image_size_px, cache.normalisation, split.seed, (split.train, split.validation, split.test))
    fitting = []
    for manifest in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        info = load_info(manifest.parent)
        if (info.image_size_px, info.normalisation, info.split_seed, info.split_shares) == wanted:
            fitting.append(manifest.parent)
    if len(fitting) > 1:
        names = [folder.name for folder in fitting]
        raise ConfigurationError(
            "several caches fit these settings", got=", ".join(names), hint="Give --labels and --images"
        )
    return fitting[0] if fitting else None


def _request(radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    """Return a digest of the settings that name a cache where its data cannot be looked at."""
    named = {
        "labels": str(radiographs.labels and radiographs.labels.absolute()),
        "images": str(radiographs.images and radiographs.images.absolute()),
        "radiographs": radiographs.model_dump(exclude={"labels", "images", "max_corrupt_fraction"}),
        "cache": cache.model_dump(exclude={"num_workers"}),
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _requests(root: Path) -> dict[str, str]:
    try:
        known = json.loads((root / _REQUESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember_request(root: Path, radiographs: RadiographsSettings, cache: CacheSettings, key: str) -> None:
    request = _request(radiographs, cache)
    if _requests(root).get(request) != key:
        with locked(root / f".{_REQUESTS}.lock", ""):
            write_whole(root / _REQUESTS, json.dumps({**_requests(root), request: key}, indent=1))


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


def _tell_corrupt(work: Path, source: _Source, corrupt: dict[int, Problem]) -> None:
    """List the images left out, or remove the list of an earlier build."""
    if not corrupt:
        (work / PROBLEMS_FILE).unlink(missing_ok=True)
        return
    _write_problems(work, corrupt.values())
    rows = ", ".join(str(source.table.rows[index]) for index in sorted(corrupt))
    _logger.warning("left out, as listed in %s: rows %s", work / PROBLEMS_FILE, rows)


def _write_problems(work: Path, problems: Iterable[Problem]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    writer.writerow(("row", "column", "FileID", "problem"))
    writer.writerows((problem.row, problem.column, problem.file_id, problem.what) for problem in problems)
    write_whole(work / PROBLEMS_FILE, text.getvalue(), mode=_PRIVATE_MODE)


@contextmanager
def _errors_told(work: Path) -> Iterator[None]:
    """List the problems of an error in `problems.csv`, name them by pseudonyms, and tell a failed write in one line."""
    try:
        yield
    except OSError as error:
        what = f"the cache cannot be written ({error.strerror})"
        raise DataError(
            what, got=str(error.filename or work), hint="Free space, or choose another --work folder"
        ) from None
    except DataError as error:
        if not error.problems:
            raise
        raise _listed(work, error) from None


def _listed(work: Path, error: DataError) -> DataError:
    try:
        _write_problems(work, error.problems)
        key = load_key(work / CACHE_FOLDER / _IDENTITY_KEY)
    except (OSError, DataError):  # the folder cannot be written: the error itself still counts
        return error
    problems = [
        dataclasses.replace(problem, pseudonym=pseudonym(problem.file_id, key) if problem.file_id else "")
        for problem in error.problems
    ]
    return DataError(str(error), problems=problems, hint=f"All are listed in {work / PROBLEMS_FILE}")
