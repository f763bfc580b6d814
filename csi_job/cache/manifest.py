"""The cache on disk: which files a finished one has, what its manifest says, how their integrity is checked.

```
<work>/cache/<key>/manifest.json      what it was built from, counts, digests of the other files
<work>/cache/<key>/split.csv          one row per image: split, pseudonyms of image and patient, zones; no identity
<work>/cache/<key>/split.npy          the same rows as an array, which takes no parsing; earlier versions wrote none
<work>/cache/<key>/train.npy          uint8 [N, H, W], rows as in split.csv; likewise validation.npy and test.npy
```
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from csi_job.errors import DataError, explain_os_errors
from csi_job.files import csv_text, digest_file, digest_json, json_text, replacing, write_atomic
from csi_job.radiographs.identity import PSEUDONYM_LENGTH
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import NUM_ZONES, ZONES

FORMAT_VERSION = 1  # part of the content key: raise it when the meaning of the files changes
MANIFEST = "manifest.json"
SPLIT_TABLE = "split.csv"
SPLIT_ARRAY = "split.npy"
_PSEUDONYM = f"S{PSEUDONYM_LENGTH}"
ROW = np.dtype(  # `split` is an index into SPLITS, `patient_index` one into all patients of the cache
    [
        ("split", "u1"),
        ("image", _PSEUDONYM),
        ("patient", _PSEUDONYM),
        ("patient_index", "<i8"),
        ("zones", "u1", NUM_ZONES),
    ]
)
IN_SEVERAL_SPLITS = "in several splits"  # what a warning says if images of one patient are, or may be
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

    @property
    def split_warnings(self) -> tuple[str, ...]:
        """Those of the `warnings` which say that a test patient may have been among those trained on."""
        return tuple(warning for warning in self.warnings if IN_SEVERAL_SPLITS in warning)


def images_file(split: str) -> str:
    """Return the name of a split's array file."""
    return f"{split}.npy"


def finished_folders(root: Path) -> list[Path]:
    """Return the folders of the finished caches, in the order of their keys."""
    return sorted(manifest.parent for manifest in root.glob(f"[!.]*/{MANIFEST}"))


def sound_caches(root: Path) -> list[CacheInfo]:
    """Return the manifests of the finished caches, without those that are damaged or of another version."""
    infos = []
    for folder in finished_folders(root):
        with suppress(DataError):
            infos.append(load_info(folder))
    return infos


def changed_file(folder: Path, name: str) -> DataError:
    """Return the error that a file of a finished cache is not what was written."""
    return DataError(f"{name} of the cache differs from its digest", got=str(folder), hint=_REBUILD)


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
            raise changed_file(folder, MANIFEST)
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


def write_split_table(folder: Path, rows_N: np.ndarray) -> None:
    """Write the rows of the arrays, in their order, as text and as an array of `ROW`."""
    columns = (rows_N[name].astype(str).tolist() for name in ("image", "patient"))
    rows = zip(
        rows_N["split"].tolist(), *columns, rows_N["patient_index"].tolist(), rows_N["zones"].tolist(), strict=True
    )
    cells = ((SPLITS[split], *names, index, *zones) for split, *names, index, zones in rows)
    write_atomic(folder / SPLIT_TABLE, csv_text(_SPLIT_COLUMNS, cells))
    with replacing(folder / SPLIT_ARRAY) as path, path.open("wb") as file:
        np.save(file, rows_N)


def read_split_table(folder: Path, info: CacheInfo) -> np.ndarray:
    """Read the rows of a finished cache's arrays, `[N]` of `ROW`.

    Raises:
        DataError: they are missing or damaged.
    """
    name = SPLIT_ARRAY if SPLIT_ARRAY in info.files else SPLIT_TABLE
    try:
        if digest_file(folder / name) != info.files.get(name):
            raise changed_file(folder, name)
        rows_N: np.ndarray = (
            np.load(folder / name, mmap_mode="r") if name == SPLIT_ARRAY else _parse_rows(folder / name)
        )
    except OSError as error:
        raise DataError(f"{name} of the cache cannot be read ({error.strerror})", hint=_REBUILD) from None
    except (ValueError, EOFError):
        raise DataError(f"{name} of the cache is damaged", got=str(folder), hint=_REBUILD) from None
    return rows_N


def _parse_rows(path: Path) -> np.ndarray:
    """Read the rows of a cache without array; raise ValueError for other text."""
    with path.open(encoding="ascii") as file:
        if file.readline().rstrip().split(";") != list(_SPLIT_COLUMNS):
            raise ValueError(path)
        return np.loadtxt(file, ROW, delimiter=";", converters={0: SPLITS.index}, ndmin=1)


def verify_cache(folder: Path) -> None:
    """Compare every file of a finished cache with its digest.

    Raises:
        DataError: names the first file that is missing, short or changed.
    """
    info = load_info(folder)
    for name in sorted({SPLIT_TABLE, *map(images_file, SPLITS), *info.files}):
        with explain_os_errors(f"{name} of the cache cannot be read", folder, kind=DataError, hint=_REBUILD):
            digest = digest_file(folder / name)
        if digest != info.files.get(name):
            raise changed_file(folder, name)
