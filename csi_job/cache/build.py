"""Build a cache: label table and images in, one finished folder out, or nothing."""

import errno
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from csi_job.cache.decode_pool import decode_images
from csi_job.cache.key import (
    Source,
    digest_images,
    existing_cache,
    find_source,
    may_be_finished,
    record_key_for_settings,
)
from csi_job.cache.manifest import (
    IN_SEVERAL_SPLITS,
    MANIFEST,
    ROW,
    SPLIT_ARRAY,
    SPLIT_TABLE,
    CacheInfo,
    images_file,
    load_info,
    manifest_text,
    sound_caches,
    write_split_table,
)
from csi_job.cache.problems import problems_listed, write_problems
from csi_job.cache.settings import CacheSettings
from csi_job.cache.slot_arrays import SlotArrays
from csi_job.errors import ConfigurationError, DataError, Problem, advice, kind_of
from csi_job.files import digest_file, exists, flush_folder, locked, locked_if_free, make_folder, write_atomic
from csi_job.logs import progress
from csi_job.machine import num_cores
from csi_job.radiographs.identity import pseudonym
from csi_job.radiographs.settings import RadiographsSettings, SplitSettings
from csi_job.radiographs.split import SPLITS, check_grades, split_patients
from csi_job.radiographs.table import LabelTable
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.work_folder import WorkFolder

_ABANDONED_S = 7 * 24 * 3600.0  # an interrupted build that was not resumed for this long is removed
_NUM_ROWS_NAMED = 10

logger = logging.getLogger(__name__)


def ensure_cache(
    radiographs: RadiographsSettings, cache: CacheSettings, work: Path, study_key: str = "", study_name: str = ""
) -> Path:
    """Return the folder of the cache, built if it is missing; without data, of the study's or the one that matches."""
    if radiographs.labels is None and radiographs.images is None:
        return existing_cache(radiographs, cache, work, study_key)
    return build_cache(radiographs, cache, work, study_key, study_name)


def build_cache(
    radiographs: RadiographsSettings, cache: CacheSettings, work: Path, study_key: str = "", study_name: str = ""
) -> Path:
    """Read and decode every radiograph once; return an existing cache at once.

    The content key is known when all images were read. They are read twice, first for the key alone, only where a
    cache that is finished may turn out to be theirs.

    The folder is named by its content and appears by one rename when it is complete. An interrupted build is resumed;
    processes that build the same cache at once share the images. `study_key` names the cache of a study, which is
    used if an earlier version built it from the same data and settings. With `study_name`, no other may be used.

    Images that cannot be used are listed in `problems.csv` of the work folder.

    Returns:
        The finished cache's folder, `<work>/cache/<key>`.

    Raises:
        DataError: table, images or split cannot be used, or the folder cannot be written.
        ConfigurationError: the table or the folder of images is not set, or the named study has other data.
    """
    root = WorkFolder(work).caches
    with problems_listed(work):
        make_folder(root)
        source = find_source(radiographs, cache, work)
        if study_key or source.index.is_complete() or may_be_finished(source, radiographs, cache, root):
            source = digest_images(source, radiographs, cache, work, study_key)
        if study_name and study_key not in ("", source.key):
            raise _other_data(root / study_key, study_name, source.table, cache, radiographs.split)
        if not _is_finished(source, root):
            _name_other_size(root, cache.image_size_px)
            source = _build(source, radiographs, cache, work)
        record_key_for_settings(root, radiographs, cache, source.key)
    return root / source.key


def _other_data(
    study_cache: Path, study_name: str, table: LabelTable, cache: CacheSettings, split: SplitSettings
) -> ConfigurationError:
    """Return the error that a study was created with other data, before hours of decoding."""
    message = f"study {study_name!r} was created with other data"
    try:
        change = _describe_change(load_info(study_cache), table, cache, split)
    except DataError:
        gone = f"{message} or by another version of csi-job, and its cache {study_cache.name} cannot be read"
        return ConfigurationError(gone, hint="restore them, or choose another study name")
    hint = "restore it, choose another study name, or leave out --labels and --images to use the study's cache"
    return ConfigurationError(f"{message}: {change}", hint=hint)


def _describe_change(old: CacheInfo, table: LabelTable, cache: CacheSettings, split: SplitSettings) -> str:
    """Say how data differs from that of a cache, e.g. `labels: 127 → 100 rows, 90 → 71 patients`."""
    num_rows, num_patients = sum(old.num_images.values()) + old.num_corrupt, len(set(table.patient_ids))
    changes = [
        (f"labels: {num_rows} → {len(table)} rows", num_rows != len(table)),
        # Patients of corrupt images alone were not counted.
        (f"{old.num_patients} → {num_patients} patients", old.num_patients != num_patients and not old.num_corrupt),
        (f"{old.image_size_px} → {cache.image_size_px} px", old.image_size_px != cache.image_size_px),
        (f"split seed {old.split_seed} → {split.seed}", old.split_seed != split.seed),
    ]
    if named := [change for change, applies in changes if applies]:
        return ", ".join(named)
    counts_ZK = _class_counts(table.zones_NZ, np.zeros(len(table), np.int64))[0]
    has_other_scores = not old.num_corrupt and (counts_ZK != sum(map(np.array, old.class_counts.values()))).any()
    other = "scores" if has_other_scores else "ids, images, settings or version of csi-job"
    return f"the same {num_rows} rows with other {other}"


def _name_other_size(root: Path, image_size_px: int) -> None:
    """Warn if all finished caches have another image size, as a flag or file may have been forgotten."""
    sizes = {info.image_size_px for info in sound_caches(root)}
    if sizes and image_size_px not in sizes:
        other = ", ".join(map(str, sorted(sizes)))
        message = "building a cache of %d px beside one of %s px; to use that one, give its --config or --image-size"
        logger.warning(message, image_size_px, other)


def _is_finished(source: Source, root: Path) -> bool:
    return bool(source.key) and exists(root / source.key)


def _build(source: Source, radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Source:
    """Decode into a hidden folder, together with other processes; one renames it when everything is on disk.

    Return the source with its key.
    """
    root = WorkFolder(work).caches
    lock, waiting = root / f".{source.build_key}.lock", "another process is building this cache; waiting for it"
    partial, done_flags = _partial_paths(root, source.build_key)
    split_N = split_patients(source.table, radiographs.split)
    check_grades(_class_counts(source.table.zones_NZ, split_N))
    corrupt: dict[int, Problem] = {}
    while not _is_finished(source, root):
        with locked(lock, waiting):
            if not exists(partial) and source.index.is_complete():  # another process may have finished just now
                source = digest_images(source, radiographs, cache, work)
                if _is_finished(source, root):
                    break
            _remove_abandoned(root)
            arrays = _open_arrays(partial, done_flags, split_N, cache.image_size_px)
        with arrays:
            _fill_slots(source, arrays, arrays.claim_parts(), corrupt, radiographs, cache)
            arrays.release()
            with locked(lock, waiting):
                is_ours = arrays.claim_all()  # otherwise they were finished or replaced meanwhile
                is_changed = is_ours
                while is_changed:
                    # Fill what killed processes left empty, or had decoded from images that changed since.
                    _fill_slots(source, arrays, [range(len(split_N))], corrupt, radiographs, cache)
                    source = digest_images(source, radiographs, cache, work)
                    is_changed = arrays.empty_changed(digest.sha256 for digest in source.digests)
                if is_ours:
                    arrays.flush()
                    _finish(source, split_N, arrays, corrupt, radiographs.split, cache, work)
        if not is_ours:
            source = digest_images(source, radiographs, cache, work)
    return source


def _finish(
    source: Source,
    split_N: np.ndarray,
    arrays: SlotArrays,
    corrupt: Mapping[int, Problem],
    split: SplitSettings,
    cache: CacheSettings,
    work: Path,
) -> None:
    """Describe the arrays, and make them the finished cache."""
    root = WorkFolder(work).caches
    partial, done_flags = _partial_paths(root, source.build_key)
    source.check_unchanged()
    if _is_finished(source, root):  # of a table or folder of another name
        _remove_partial(partial, done_flags)
        return
    doubtful = [source.problem(index, f"doubtful: {doubt}") for index, doubt in arrays.doubts().items()]
    kept = np.setdiff1d(np.arange(len(split_N)), [*corrupt])
    files = {images_file(name): path for name, path in arrays.without(corrupt).items()}
    info = _describe(source, split_N, kept, len(doubtful), files, partial, split, cache)
    for name, path in files.items():
        path.replace(partial / name)
    flush_folder(partial)
    path = WorkFolder(work).problems
    if problems := sorted([*corrupt.values(), *doubtful], key=lambda problem: problem.row or 0):
        write_problems(work, problems)
    else:
        path.unlink(missing_ok=True)  # of an earlier build
    try:
        partial.rename(root / source.key)
    except OSError:
        if not _is_finished(source, root):
            raise
        shutil.rmtree(partial)  # a build of the same images by another path was faster
    done_flags.unlink(missing_ok=True)
    flush_folder(root)
    for warning in info.warnings:
        logger.warning("%s", warning)
    if not problems:
        return
    rows = [f"{problem.row} ({problem.what})" for problem in problems[:_NUM_ROWS_NAMED]]
    more = ", …" if len(problems) > len(rows) else ""
    logger.warning("the skipped and doubtful images are listed in %s: rows %s%s", path, ", ".join(rows), more)


def _partial_paths(root: Path, key: str) -> tuple[Path, Path]:
    """Return the folder of an unfinished build and its done flags."""
    return root / f".{key}.partial", root / f".{key}.marks"


def _remove_abandoned(root: Path) -> None:
    """Remove what builds of other caches, interrupted long ago, left behind."""
    for folder in root.glob(".*.partial"):
        key = folder.name.removeprefix(".").removesuffix(".partial")
        with locked_if_free(root / f".{key}.lock") as held:  # without the lock, its build may be running
            paths = [path for path in _partial_paths(root, key) if exists(path)]
            changed = max((path.stat().st_mtime for path in paths), default=math.inf) if held else math.inf
            if time.time() - changed > _ABANDONED_S:
                _remove_partial(*_partial_paths(root, key))


def _remove_partial(folder: Path, done_flags: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    done_flags.unlink(missing_ok=True)


def _open_arrays(partial: Path, done_flags: Path, split_N: np.ndarray, side_px: int) -> SlotArrays:
    """Create or open the unfinished arrays; if there is no room for new ones, leave nothing behind."""
    is_new = not exists(partial)
    make_folder(partial)
    try:
        return SlotArrays(partial, done_flags, split_N, side_px)
    except OSError as error:
        if is_new:
            _remove_partial(partial, done_flags)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        what, hint = f"no room for the cache ({error.strerror})", advice(error, "choose another --work folder")
        needed = f"{math.ceil(len(split_N) * side_px * side_px / 1e6)} MB free"
        raise kind_of(error, DataError)(what, got=str(partial.parent), allowed=needed, hint=hint) from None


def _fill_slots(
    source: Source,
    arrays: SlotArrays,
    parts: Iterable[range],
    corrupt: dict[int, Problem],
    radiographs: RadiographsSettings,
    cache: CacheSettings,
) -> None:
    """Fill the empty slots of claimed parts; add images that cannot be read to `corrupt`, if they are few enough."""
    num_images = len(source.table)
    with progress("caching radiographs", num_images, "images") as advance:

        def images() -> Iterator[tuple[int, Path]]:
            for part in parts:
                todo = [index for index in arrays.empty_slots(part) if index not in corrupt]
                advance(len(part) - len(todo))
                yield from ((index, Path(source.paths[index])) for index in todo)

        side_px, max_side_px = cache.image_size_px, radiographs.max_image_side_px
        num_decoders = cache.num_workers or num_cores()
        with closing(decode_images(images(), side_px, max_side_px, num_decoders, source.index.add)) as decoded:
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
                    digest = source.index[index]
                    arrays.write_slot(index, pixels_or_problem, digest.sha256 if digest else "")
                advance(1)
        source.index.flush()


def _describe(
    source: Source,
    split_N: np.ndarray,
    kept: np.ndarray,
    num_doubtful: int,
    files: Mapping[str, Path],
    folder: Path,
    split: SplitSettings,
    cache: CacheSettings,
) -> CacheInfo:
    """Write split table and manifest of finished arrays, which hold the images `kept`; refuse an empty split."""
    table, order_N = source.table, kept[np.argsort(split_N[kept], kind="stable")]  # the order of the arrays
    patients, patient_N = table.patients()
    pseudonyms = np.array([pseudonym(patient, source.identity_key) for patient in patients], dtype=ROW["patient"])
    rows_N = np.empty(len(order_N), dtype=ROW)
    rows_N["split"], rows_N["zones"] = split_N[order_N], table.zones_NZ[order_N]
    rows_N["image"] = [pseudonym(table.file_ids[index], source.identity_key) for index in order_N.tolist()]
    rows_N["patient"], rows_N["patient_index"] = pseudonyms[patient_N[order_N]], patient_N[order_N]
    write_split_table(folder, rows_N)
    files = {**files, SPLIT_TABLE: folder / SPLIT_TABLE, SPLIT_ARRAY: folder / SPLIT_ARRAY}
    counts_SZK = _class_counts(table.zones_NZ[kept], split_N[kept])
    info = CacheInfo(
        key=source.key,
        image_size_px=cache.image_size_px,
        normalisation=cache.normalisation,
        split_seed=split.seed,
        split_shares=(split.train, split.validation, split.test),
        num_images={name: int((rows_N["split"] == place).sum()) for place, name in enumerate(SPLITS)},
        num_patients=len(np.unique(rows_N["patient_index"])),
        num_corrupt=len(table) - len(kept),
        class_counts=dict(zip(SPLITS, counts_SZK.tolist(), strict=True)),
        warnings=(*_data_warnings(source, split_N, kept, num_doubtful), *check_grades(counts_SZK)),
        files={name: digest_file(path) for name, path in files.items()},
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


def _data_warnings(source: Source, split_N: np.ndarray, kept: np.ndarray, num_doubtful: int) -> tuple[str, ...]:
    warnings = []
    num_corrupt = len(source.table) - len(kept)
    if num_corrupt:
        warnings.append(f"{num_corrupt} of {len(source.table)} images cannot be read and are skipped")
    if num_doubtful:
        what = "images look doubtful (nearly flat, or nearly all black or white) but are kept; look at them"
        warnings.append(f"{num_doubtful} of {len(source.table)} {what}")
    if not source.table.has_patients:
        like = source.table.like_patients.strip()
        hint = f"; if its column {like!r} names the patients, call it PatientID" if like else ""
        what = f"every image counts as a patient, and those of one patient may be {IN_SEVERAL_SPLITS}"
        warnings.append(f"no PatientID: {what}{hint}")
    if num_alike := source.table.num_patients_alike():
        what = "PatientIDs differ from another only in case, spaces, leading zeros or invisible characters"
        warnings.append(
            f"{num_alike} {what}; write those of one patient alike, or its images may be {IN_SEVERAL_SPLITS}"
        )
    split_of: dict[str, int] = {}
    contents = ((source.digests[index].sha256, int(split_N[index])) for index in kept.tolist())
    num_shared = len({sha256 for sha256, split in contents if split_of.setdefault(sha256, split) != split})
    if num_shared:
        warnings.append(f"{num_shared} image files are {IN_SEVERAL_SPLITS}, as copies under other names")
    return tuple(warnings)
