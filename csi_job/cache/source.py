"""The checked input of a build: table, image files, and the key that their content gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csi_job.cache.content import DigestIndex, ImageDigest, cache_key, stat_of
from csi_job.cache.settings import CacheSettings
from csi_job.errors import ConfigurationError, DataError, Problem
from csi_job.radiographs.identity import load_key
from csi_job.radiographs.read import find_images
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable, read_table

IDENTITY_KEY_FILE = "identity.key"
_DIGESTS_FILE = "digests.json"


@dataclass(frozen=True)
class Source:
    """N rows in the order of their FileIDs, so that a table sorted anew gives the same cache."""

    table: LabelTable
    paths: tuple[Path, ...]
    digests: tuple[ImageDigest, ...]
    key: str
    identity_key: bytes

    def problem(self, index: int, what: str) -> Problem:
        """Return what is wrong with the image of a row."""
        return Problem(what, row=self.table.rows[index], file_id=self.table.file_ids[index])

    def check_unchanged(self) -> None:
        """Check that no image changed since it was digested.

        Raises:
            DataError: some did; the pixels may not be those that the key promises.

        """
        changed = [
            self.problem(index, "changed while the cache was built")
            for index, (path, digest) in enumerate(zip(self.paths, self.digests, strict=True))
            if digest.stat is not None and stat_of(path) != digest.stat
        ]
        if changed:
            raise DataError("images changed while the cache was built", problems=changed, hint="Run it again")


def read_source(radiographs: RadiographsSettings, cache: CacheSettings, root: Path) -> Source:
    """Read the table, find the images, digest those that are new.

    Args:
        radiographs: where table and images are.
        cache: size and normalisation, which are part of the key.
        root: the folder of all caches of a work folder.

    Raises:
        ConfigurationError: table or images are not set.
        DataError: they cannot be used.

    """
    if radiographs.labels is None or radiographs.images is None:
        missing = "radiographs.labels" if radiographs.labels is None else "radiographs.images"
        raise ConfigurationError(f"{missing} is not set", hint="Give --labels TABLE and --images FOLDER")
    table = _sorted_by_file(read_table(radiographs.labels, radiographs))
    paths = find_images(radiographs.images, table.file_ids, table.rows)
    identity_key = load_key(root / IDENTITY_KEY_FILE)
    digests = tuple(DigestIndex(root / _DIGESTS_FILE, identity_key).digest(paths))
    return Source(table, paths, digests, cache_key(table, digests, radiographs, cache), identity_key)


def _sorted_by_file(table: LabelTable) -> LabelTable:
    order = sorted(range(len(table)), key=lambda index: table.file_ids[index])
    return LabelTable(
        file_ids=tuple(table.file_ids[index] for index in order),
        patient_ids=tuple(table.patient_ids[index] for index in order),
        rows=tuple(table.rows[index] for index in order),
        zones_NZ=table.zones_NZ[order],
        has_patients=table.has_patients,
    )
