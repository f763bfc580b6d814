"""The cache on disk: which files a finished one has, what its manifest says, how their integrity is checked.

```
<work>/cache/<key>/manifest.json      what it was built from, counts, digests of the other files
<work>/cache/<key>/split.csv          one row per image: split, pseudonyms of image and patient, zones; no identity
<work>/cache/<key>/train.npy          uint8 [N, H, W], rows as in split.csv; likewise validation.npy and test.npy
```
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from csi_job.errors import DataError, explain_os_errors
from csi_job.files import csv_text, digest_file, digest_json, json_text
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import ZONES

FORMAT_VERSION = 1  # part of the content key: raise it when the meaning of the files changes
MANIFEST = "manifest.json"
SPLIT_TABLE = "split.csv"
_DIGEST_FIELD = "manifest_sha256"
_SPLIT_COLUMNS = ("split", "image", "patient", "patient_index", *ZONES)
_REBUILD = "delete the folder and run `csi-job cache build` again"


@dataclass(frozen=True)
class CacheInfo:
    """The contents of a cache; `key` is its content key.

    `num_images` is by split; `class_counts` counts images by split, zone and class, `[6][5]` per split;
    `files` has the SHA-256 of every other file of the cache.
    """

    key: str
    image_size_px: int
    normalisation: str
    split_seed: int
    split_shares: tuple[float, float, float]
    num_images: dict[str, int]
    num_patients: int
    num_corrupt: int
    class_counts: dict[str, list[list[int]]]
    warnings: tuple[str, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class CachedImage:
    """One row of the split table."""

    split: str
    image: str
    patient: str
    patient_index: int
    zones: tuple[int, ...]


def images_file(split: str) -> str:
    """Return the name of a split's array file."""
    return f"{split}.npy"


def describe_change(old: CacheInfo, new: CacheInfo) -> str:
    """Say how the data of one cache differs from another's, e.g. `labels: 127 → 100 rows, 90 → 71 patients`."""
    rows = [sum(info.num_images.values()) + info.num_corrupt for info in (old, new)]
    changes = [
        (f"labels: {rows[0]} → {rows[1]} rows", rows[0] != rows[1]),
        (f"{old.num_patients} → {new.num_patients} patients", old.num_patients != new.num_patients),
        (f"{old.image_size_px} → {new.image_size_px} px", old.image_size_px != new.image_size_px),
        (f"split seed {old.split_seed} → {new.split_seed}", old.split_seed != new.split_seed),
    ]
    named = [change for change, applies in changes if applies]
    if not named:
        scores = old.class_counts != new.class_counts
        named = [f"the same {rows[0]} rows with other {'scores' if scores else 'ids, images or settings'}"]
    return ", ".join(named)


def load_info(folder: Path) -> CacheInfo:
    """Read the manifest of a finished cache.

    Raises:
        DataError: it is missing, has another version, or was changed.

    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, digest = content.pop("format_version"), content.pop(_DIGEST_FIELD)
        if version != FORMAT_VERSION:
            raise DataError("the cache has another version", got=version, allowed=FORMAT_VERSION, hint=_REBUILD)
        if digest != digest_json(content):
            raise DataError(f"{MANIFEST} of the cache differs from its digest", got=str(folder), hint=_REBUILD)
        content["split_shares"], content["warnings"] = tuple(content["split_shares"]), tuple(content["warnings"])
        return CacheInfo(**content)
    except OSError as error:
        what = f"no readable cache ({error.strerror})"
        raise DataError(what, got=str(folder), hint="run `csi-job cache build`") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{MANIFEST} of the cache is damaged", got=str(folder), hint=_REBUILD) from None


def manifest_text(info: CacheInfo) -> str:
    """Return the text of the manifest, including its own digest."""
    content = asdict(info)
    return json_text({"format_version": FORMAT_VERSION, **content, _DIGEST_FIELD: digest_json(content)})


def split_table_text(images: list[CachedImage]) -> str:
    """Return the text of the split table."""
    rows = ((row.split, row.image, row.patient, row.patient_index, *row.zones) for row in images)
    return csv_text(_SPLIT_COLUMNS, rows)


def read_split_table(folder: Path) -> list[CachedImage]:
    """Read the split table of a finished cache.

    Raises:
        DataError: it is missing or damaged.

    """
    damaged = DataError(f"{SPLIT_TABLE} of the cache is damaged", got=str(folder), hint=_REBUILD)
    try:
        with (folder / SPLIT_TABLE).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, delimiter=";")
        images = [
            CachedImage(split, image, patient, int(index), tuple(map(int, zones)))
            for split, image, patient, index, *zones in rows
        ]
    except OSError as error:
        raise DataError(f"{SPLIT_TABLE} of the cache cannot be read ({error.strerror})", hint=_REBUILD) from None
    except (ValueError, csv.Error):
        raise damaged from None
    if tuple(header) != _SPLIT_COLUMNS:
        raise damaged
    return images


def verify_cache(folder: Path) -> None:
    """Compare every file of a finished cache with its digest.

    Raises:
        DataError: names the first file that is missing, short or changed.

    """
    info = load_info(folder)
    for name in (SPLIT_TABLE, *(images_file(split) for split in SPLITS)):
        with explain_os_errors(f"{name} of the cache cannot be read", folder, kind=DataError, hint=_REBUILD):
            digest = digest_file(folder / name)
        if digest != info.files.get(name):
            raise DataError(f"{name} of the cache differs from its digest", got=str(folder), hint=_REBUILD)
