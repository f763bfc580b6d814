"""Build a cache: label table and images in, one finished folder out, or nothing."""

from __future__ import annotations

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csi_job.cache.decode_pool import decode_images, num_cores
from csi_job.cache.key import Source, read_source, record_key_for_settings
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
from csi_job.cache.slot_arrays import SlotArrays
from csi_job.errors import DataError, Problem, kind_of
from csi_job.files import digest_file, flush_folder, locked, locked_if_free, make_folder, write_atomic
from csi_job.logs import get_logger, progress
from csi_job.radiographs.grey import doubt_about
from csi_job.radiographs.identity import pseudonym
from csi_job.radiographs.split import SPLITS, check_grades, split_patients
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.work_folder import WorkFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csi_job.cache.settings import CacheSettings
    from csi_job.radiographs.settings import RadiographsSettings, SplitSettings

_ABANDONED_S = 7 * 24 * 3600.0  # an interrupted build that was not resumed for this long is removed
_NUM_ROWS_NAMED = 10

_logger = get_logger(__name__)


def build_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Path:
    """Decode every radiograph once; return an existing cache at once.

    The folder is named by its content and appears by one rename when it is complete. An interrupted build is resumed;
    a second process building the same cache waits for the first.

    Images that cannot be used are listed in `problems.csv` of the work folder.

    Returns:
        The finished cache's folder, `<work>/cache/<key>`.

    Raises:
        DataError: table, images or split cannot be used, or the folder cannot be written.
        ConfigurationError: the table or the folder of images is not set.

    """
    root = WorkFolder(work).caches
    with problems_listed(work):
        make_folder(root)
        source = read_source(radiographs, cache, work)
        folder = root / source.key
        if not folder.exists():
            waiting = f"another process is building cache {source.key}; waiting for it"
            with locked(root / f".{source.key}.lock", waiting):
                if not folder.exists():
                    _build(source, radiographs, cache, work)
        record_key_for_settings(root, radiographs, cache, source.key)
    return folder


def _build(source: Source, radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> None:
    """Decode into a hidden folder, and rename it when everything is on disk."""
    root = WorkFolder(work).caches
    _remove_abandoned(root)
    partial, done_flags = _partial_paths(root, source.key)
    split_N = split_patients(source.table, radiographs.split)
    check_grades(_class_counts(source.table.zones_NZ, split_N))
    with _open_arrays(partial, done_flags, split_N, cache.image_size_px) as arrays:
        corrupt = _fill_slots(source, arrays, radiographs, cache)
        arrays.flush()
        arrays.remove_slots([*corrupt])
    source.check_unchanged()
    kept = [index for index in range(len(source.table)) if index not in corrupt]
    doubtful = _doubtful(source, split_N, kept, partial)
    info = _describe(source, split_N, kept, len(doubtful), partial, radiographs.split, cache)
    flush_folder(partial)
    partial.rename(root / source.key)
    flush_folder(root)
    done_flags.unlink(missing_ok=True)
    for warning in info.warnings:
        _logger.warning("%s", warning)
    _report_problems(work, [*corrupt.values(), *doubtful])


def _partial_paths(root: Path, key: str) -> tuple[Path, Path]:
    """Return the folder of an unfinished build and its done flags."""
    return root / f".{key}.partial", root / f".{key}.marks"


def _remove_abandoned(root: Path) -> None:
    """Remove what interrupted builds of other caches left long ago."""
    for folder in root.glob(".*.partial"):
        key = folder.name.removeprefix(".").removesuffix(".partial")
        with locked_if_free(root / f".{key}.lock") as held:  # before it is held, the build may go on, and end
            paths = [path for path in _partial_paths(root, key) if path.exists()]
            changed = max((path.stat().st_mtime for path in paths), default=math.inf) if held else math.inf
            if time.time() - changed > _ABANDONED_S:
                _remove_partial(*_partial_paths(root, key))


def _remove_partial(folder: Path, done_flags: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    done_flags.unlink(missing_ok=True)


@contextmanager
def _open_arrays(partial: Path, done_flags: Path, split_N: np.ndarray, side_px: int) -> Iterator[SlotArrays]:
    """Create or open the unfinished arrays; if there is no room for new ones, leave nothing behind."""
    is_new = not partial.exists()
    make_folder(partial)
    try:
        arrays = SlotArrays(partial, done_flags, split_N, side_px)
    except OSError as error:
        if is_new:
            _remove_partial(partial, done_flags)
        needed = f"{math.ceil(len(split_N) * side_px * side_px / 1e6)} MB free"
        hint = "free space, or choose another --work folder"
        what = f"no room for the cache ({error.strerror})"
        raise kind_of(error, DataError)(what, got=str(partial.parent), allowed=needed, hint=hint) from None
    with arrays:
        yield arrays


def _fill_slots(
    source: Source, arrays: SlotArrays, radiographs: RadiographsSettings, cache: CacheSettings
) -> dict[int, Problem]:
    """Fill the empty slots; return the images that cannot be read, if they are few enough."""
    num_images, todo = len(source.table), arrays.empty_slots
    corrupt: dict[int, Problem] = {}
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
                allowed = radiographs.max_corrupt_fraction
                if len(corrupt) > allowed * num_images:
                    raise DataError(
                        f"{len(corrupt)} of {num_images} images cannot be read; build stopped",
                        allowed=f"a fraction of {allowed:g} (radiographs.max_corrupt_fraction)",
                        problems=corrupt.values(),
                    )
            else:
                arrays.write_slot(index, pixels_or_problem)
            advance(1)
    return corrupt


def _doubtful(source: Source, split_N: np.ndarray, kept: Sequence[int], folder: Path) -> list[Problem]:
    """Return the images that hardly show a radiograph, from the finished arrays: a resumed build decoded only some."""
    problems = []
    for place, name in enumerate(SPLITS):
        members = [index for index in kept if split_N[index] == place]
        images_NHW = np.load(folder / images_file(name), mmap_mode="r") if members else ()
        doubts = map(doubt_about, images_NHW)
        problems += [
            source.problem(index, f"doubtful: {doubt}") for index, doubt in zip(members, doubts, strict=True) if doubt
        ]
    return problems


def _report_problems(work: Path, problems: list[Problem]) -> None:
    """List the skipped and doubtful images, or remove the list of an earlier build."""
    if not problems:
        WorkFolder(work).problems.unlink(missing_ok=True)
        return
    problems.sort(key=lambda problem: problem.row or 0)
    path = write_problems(work, problems)
    rows = [f"{problem.row} ({problem.what})" for problem in problems[:_NUM_ROWS_NAMED]]
    more = ", …" if len(problems) > len(rows) else ""
    _logger.warning("the skipped and doubtful images are listed in %s: rows %s%s", path, ", ".join(rows), more)


def _describe(
    source: Source,
    split_N: np.ndarray,
    kept: Sequence[int],
    num_doubtful: int,
    folder: Path,
    split: SplitSettings,
    cache: CacheSettings,
) -> CacheInfo:
    """Write split table and manifest of finished arrays, which hold the images `kept`; refuse an empty split."""
    write_atomic(folder / SPLIT_TABLE, split_table_text(_split_rows(source, split_N, kept)))
    counts_SZK = _class_counts(source.table.zones_NZ[kept], split_N[kept])
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
        warnings=(*_data_warnings(source, split_N, kept, num_doubtful), *check_grades(counts_SZK)),
        files={name: digest_file(folder / name) for name in (SPLIT_TABLE, *map(images_file, SPLITS))},
    )
    for name, num_images in info.num_images.items():
        if num_images == 0:
            raise DataError(f"no image is left in the {name} split", hint="repair the images that cannot be read")
    write_atomic(folder / MANIFEST, manifest_text(info))
    return info


def _class_counts(zones_NZ: np.ndarray, split_N: np.ndarray) -> np.ndarray:
    """Count the images by split, zone and class, `[3, 6, 5]`."""
    counts_SZK = np.zeros((len(SPLITS), NUM_ZONES, NUM_CLASSES), dtype=np.int64)
    zone_indices_NZ = np.broadcast_to(np.arange(NUM_ZONES), zones_NZ.shape)
    np.add.at(counts_SZK, (split_N[:, None], zone_indices_NZ, zones_NZ), 1)
    return counts_SZK


def _split_rows(source: Source, split_N: np.ndarray, kept: Sequence[int]) -> list[CachedImage]:
    """Return the rows of the split table in the order of the arrays."""
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


def _data_warnings(source: Source, split_N: np.ndarray, kept: Sequence[int], num_doubtful: int) -> tuple[str, ...]:
    warnings = []
    num_corrupt = len(source.table) - len(kept)
    if num_corrupt:
        warnings.append(f"{num_corrupt} of {len(source.table)} images cannot be read and are skipped")
    if num_doubtful:
        what = "images look doubtful (nearly flat, or nearly all black or white) but are kept; look at them"
        warnings.append(f"{num_doubtful} of {len(source.table)} {what}")
    if not source.table.has_patients:
        warnings.append("no PatientID: images of one patient may be in several splits")
    splits_of_content: dict[str, set[int]] = defaultdict(set)
    for index in kept:
        splits_of_content[source.digests[index].sha256].add(int(split_N[index]))
    num_shared = sum(len(splits) > 1 for splits in splits_of_content.values())
    if num_shared:
        warnings.append(f"{num_shared} image files are in several splits, as copies under other names")
    return tuple(warnings)
