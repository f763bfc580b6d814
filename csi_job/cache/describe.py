"""What a cache holds, counted and written beside its arrays: the split table and the manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from csi_job.cache.files import write_whole
from csi_job.cache.settings import CacheSettings
from csi_job.cache.source import Source
from csi_job.cache.store import (
    MANIFEST,
    SPLIT_TABLE,
    CachedImage,
    CacheInfo,
    digest_file,
    images_file,
    manifest_text,
    split_table_text,
)
from csi_job.errors import DataError
from csi_job.radiographs.identity import pseudonym
from csi_job.radiographs.settings import SplitSettings
from csi_job.radiographs.split import SPLITS, check_grades
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES


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
    write_whole(folder / SPLIT_TABLE, split_table_text(rows))
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
    write_whole(folder / MANIFEST, manifest_text(info))
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
