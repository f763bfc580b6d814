"""A finished cache found again, also where the data it was built from is not mounted."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from csi_job.cache.files import locked, write_whole
from csi_job.cache.settings import CacheSettings
from csi_job.cache.store import MANIFEST, load_info
from csi_job.errors import ConfigurationError
from csi_job.radiographs.settings import RadiographsSettings

_REQUESTS_FILE = "requests.json"  # settings (digested) → key of the cache last built for them


def remember_request(root: Path, radiographs: RadiographsSettings, cache: CacheSettings, key: str) -> None:
    """Note which cache these settings gave; a folder that cannot be written is left as it is."""
    request = _request(radiographs, cache)
    if _requests(root).get(request) != key:
        with suppress(OSError), locked(root / f".{_REQUESTS_FILE}.lock", ""):
            write_whole(root / _REQUESTS_FILE, json.dumps({**_requests(root), request: key}, indent=1))


def remembered_key(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> str | None:
    """Return the key of the cache last built for these settings."""
    return _requests(root).get(_request(radiographs, cache))


def only_cache(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> Path | None:
    """Return the only cache of this size, normalisation and split, or None.

    Raises:
        ConfigurationError: several fit.

    """
    split = radiographs.split
    wanted = (cache.image_size_px, cache.normalisation, split.seed, (split.train, split.validation, split.test))
    fitting = []
    for manifest in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        info = load_info(manifest.parent)
        if (info.image_size_px, info.normalisation, info.split_seed, info.split_shares) == wanted:
            fitting.append(manifest.parent)
    if len(fitting) > 1:
        names = ", ".join(folder.name for folder in fitting)
        raise ConfigurationError("several caches fit these settings", got=names, hint="Give --labels and --images")
    return fitting[0] if fitting else None


def _request(radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    named = {
        "labels": str(radiographs.labels and radiographs.labels.absolute()),
        "images": str(radiographs.images and radiographs.images.absolute()),
        "radiographs": radiographs.model_dump(exclude={"labels", "images", "max_corrupt_fraction"}),
        "cache": cache.model_dump(exclude={"num_workers"}),
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _requests(root: Path) -> dict[str, str]:
    try:
        known = json.loads((root / _REQUESTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
