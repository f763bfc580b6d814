"""Which cache belongs to which data.

A cache is named by its content key, a digest of everything that decides its pixels and labels: image files, label
table, split and settings. Where the data is not mounted, the key is the one last recorded for the same settings.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from csi_job.cache.digest_index import DigestIndex, ImageDigest, stamps_of
from csi_job.cache.manifest import FORMAT_VERSION, CacheInfo, finished_folders, load_info, sound_caches
from csi_job.cache.problems import problems_listed
from csi_job.cache.settings import NODE_ONLY, CacheSettings
from csi_job.errors import ConfigurationError, DataError, Problem
from csi_job.files import digest_json, exists, is_folder, locked, read_json, real_path, write_atomic
from csi_job.radiographs.identity import load_key
from csi_job.radiographs.read import EARLIER_READERS, READER_VERSION, find_images
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable, read_table
from csi_job.work_folder import WorkFolder, no_cache

KEY_LENGTH = 16
_KEYS_FILE = "requests.json"  # digest of settings → key of the cache last built for them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The data of a cache: N rows ordered by FileID, so that the order of the table does not matter.

    `digests` of the images and the content key `key` are empty until all images were read. `build_key` names the
    unfinished cache: it is a digest of what decides where the pixels of each image go.
    """

    table: LabelTable
    paths: tuple[str, ...]
    index: DigestIndex
    identity_key: bytes
    images: Path
    """The folder of images, resolved, as a link may lead elsewhere later."""
    build_key: str
    digests: tuple[ImageDigest, ...] = ()
    key: str = ""

    def problem(self, index: int, what: str) -> Problem:
        """Return a problem with the image of a row."""
        image = Path(self.paths[index]).relative_to(self.images).as_posix()
        return Problem(what, row=self.table.rows[index], file_id=self.table.file_ids[index], image=image)

    def check_unchanged(self) -> None:
        """Raise `DataError` if an image changed since it was digested, as its pixels may not match the key."""
        stamps = stamps_of(self.paths, self.identity_key)
        changed = [
            self.problem(index, "changed while the cache was built")
            for index, (stamp, digest) in enumerate(zip(stamps, self.digests, strict=True))
            if digest.stamp and stamp != digest.stamp
        ]
        if changed:
            raise DataError("images changed while the cache was built", problems=changed, hint="run it again")


def find_source(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Source:
    """Read the table and find the images; the work folder's folder of caches must exist.

    Raises:
        ConfigurationError: table or images are not set.
        DataError: they cannot be used.
    """
    if radiographs.labels is None or radiographs.images is None:
        missing = "radiographs.labels" if radiographs.labels is None else "radiographs.images"
        raise ConfigurationError(f"{missing} is not set", hint="give --labels TABLE and --images FOLDER")
    table = read_table(radiographs.labels, radiographs).sorted_by_file()
    paths = find_images(radiographs.images, table.file_ids, table.rows)
    folder = WorkFolder(work)
    identity_key = load_key(folder.identity_key)
    index = DigestIndex(folder.caches, identity_key, paths)
    images = real_path(radiographs.images)
    return Source(table, paths, index, identity_key, images, _build_key(table, radiographs, cache))


def digest_images(
    source: Source, radiographs: RadiographsSettings, cache: CacheSettings, work: Path, study_key: str = ""
) -> Source:
    """Return the source with the digests of all images, reading those that are not known, and its key.

    For `study_key` see `build_cache`.
    """
    digests = source.index.read_all()
    key = _content_key(source.table, digests, radiographs, cache, READER_VERSION)
    earlier = (_content_key(source.table, digests, radiographs, cache, reader) for reader in EARLIER_READERS)
    if study_key not in ("", key) and is_folder(WorkFolder(work).cache(study_key)) and study_key in earlier:
        logger.info("using the study's cache %s, which an earlier version of csi-job decoded", study_key)
        key = study_key
    return replace(source, digests=digests, key=key)


def find_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path, study_key: str = "") -> Path | None:
    """Return the folder of the finished cache for these settings, or None; nothing is decoded.

    If the data is not mounted, as in pods that only train, it is the cache last built for the same settings. If no
    data is named, it is the only cache with this size, normalisation and split. For `study_key` see `build_cache`.

    Raises:
        DataError: the data cannot be used.
        ConfigurationError: only half of the data is named, or none and several caches match.
    """
    root = WorkFolder(work).caches
    if not is_folder(root):
        return None
    named = [path for path in (radiographs.labels, radiographs.images) if path is not None]
    if not named:
        return _sole_matching_cache(root, radiographs, cache)
    if len(named) == 1 or any(exists(path) for path in named):
        with problems_listed(work):
            source = find_source(radiographs, cache, work)
            key: str | None = digest_images(source, radiographs, cache, work, study_key).key
    else:
        key = (read_json(root / _KEYS_FILE) or {}).get(_settings_digest(radiographs, cache))
    folder = WorkFolder(work).cache(key) if isinstance(key, str) and key else None
    return folder if folder is not None and is_folder(folder) else None


def record_key_for_settings(root: Path, radiographs: RadiographsSettings, cache: CacheSettings, key: str) -> None:
    """Record which cache was built for these settings; does nothing if the folder cannot be written."""
    settings, path = _settings_digest(radiographs, cache), root / _KEYS_FILE
    if (read_json(path) or {}).get(settings) != key:
        with suppress(OSError, ConfigurationError), locked(root / f".{_KEYS_FILE}.lock", ""):
            write_atomic(path, json.dumps({**(read_json(path) or {}), settings: key}, indent=1))


def _content_key(
    table: LabelTable,
    digests: Sequence[ImageDigest],
    radiographs: RadiographsSettings,
    cache: CacheSettings,
    reader: int,
) -> str:
    """Return 16 hexadecimal digits of everything that decides a cache's content; the table is sorted by FileID."""
    settings = _deciding_settings(radiographs, cache, reader)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    rows = zip(table.file_ids, table.patient_ids, table.zones_NZ.tolist(), digests, strict=True)
    for file_id, patient_id, zones, digest in rows:  # as `json.dumps` writes a list, at a fifth of its cost
        names = f"{encode_basestring_ascii(file_id)}, {encode_basestring_ascii(patient_id)}"
        key.update(f'[{names}, {zones}, "{digest.sha256}"]'.encode())
    return key.hexdigest()[:KEY_LENGTH]


def _build_key(table: LabelTable, radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    """Return 16 hexadecimal digits of what is known of a cache before its images are read; the table is sorted."""
    settings = _deciding_settings(radiographs, cache, READER_VERSION)
    ids = [digest_json(names) for names in (table.file_ids, table.patient_ids)]
    zones = hashlib.sha256(table.zones_NZ.tobytes()).hexdigest()
    return digest_json([settings, str(radiographs.images and radiographs.images.absolute()), ids, zones])[:KEY_LENGTH]


def _deciding_settings(radiographs: RadiographsSettings, cache: CacheSettings, reader: int) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "reader": reader,
        "image_size_px": cache.image_size_px,
        "normalisation": cache.normalisation,
        "max_image_side_px": radiographs.max_image_side_px,
        "split": radiographs.split.model_dump(),
    }


def _settings_digest(radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    named = {
        "labels": str(radiographs.labels and radiographs.labels.absolute()),
        "images": str(radiographs.images and radiographs.images.absolute()),
        "radiographs": radiographs.model_dump(exclude={"labels", "images", "max_corrupt_fraction"}),
        "cache": cache.model_dump(exclude=NODE_ONLY),
    }
    return digest_json(named)


def may_be_finished(source: Source, radiographs: RadiographsSettings, cache: CacheSettings, root: Path) -> bool:
    """Return whether a finished cache may turn out to be of this data, when its images were read."""
    return any(
        sum(info.num_images.values()) + info.num_corrupt == len(source.table) and _matches(info, radiographs, cache)
        for info in sound_caches(root)
    )


def _matches(info: CacheInfo, radiographs: RadiographsSettings, cache: CacheSettings) -> bool:
    split = radiographs.split
    wanted = (cache.image_size_px, cache.normalisation, split.seed, (split.train, split.validation, split.test))
    return (info.image_size_px, info.normalisation, info.split_seed, info.split_shares) == wanted


def _sole_matching_cache(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> Path | None:
    matching = [folder for folder in finished_folders(root) if _matches(load_info(folder), radiographs, cache)]
    if len(matching) > 1:
        names = ", ".join(folder.name for folder in matching)
        raise ConfigurationError("several caches match these settings", got=names, hint="give --labels and --images")
    return matching[0] if matching else None


def existing_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path, named_key: str = "") -> Path:
    """Return the folder of a finished cache; `named_key` names it if no other data, size or normalisation is named.

    Raises:
        ConfigurationError: there is none, or several match and none is named.
    """
    named = WorkFolder(work).cache(named_key) if named_key and radiographs.labels is None else None
    if named is not None and is_folder(named):
        info, given = load_info(named), cache.model_fields_set & {"image_size_px", "normalisation"}
        if all(getattr(info, name) == getattr(cache, name) for name in given):
            return named
    folder = find_cache(radiographs, cache, work, named_key)
    if folder is None:
        raise _no_matching_cache(radiographs, cache, work)
    return folder


def _no_matching_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> ConfigurationError:
    """Return the error that no cache matches, naming those that exist."""

    def described(image_size_px: int, normalisation: str, split_seed: int) -> str:
        return f"{image_size_px} px, {normalisation}, split seed {split_seed}"

    infos = sound_caches(WorkFolder(work).caches)
    present = [described(info.image_size_px, info.normalisation, info.split_seed) for info in infos]
    if not present:
        return no_cache(WorkFolder(work))
    wanted = described(cache.image_size_px, cache.normalisation, radiographs.split.seed)
    if radiographs.labels is not None:
        what, allowed = "there is no cache of this data with these settings", None
        hint = "build it: csi-job cache build, with the same options"
    else:
        what, allowed = "there is no cache for these settings", "; or ".join(dict.fromkeys(present))
        hint = "give the --image-size or --config of one, or --labels and --images"
    return ConfigurationError(what, got=wanted, allowed=allowed, hint=hint)
