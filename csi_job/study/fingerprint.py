"""What must stay the same in all workers and all phases of a study, and the names of what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from csi_job.errors import ConfigurationError

NUM_DIFFERENCES_NAMED: Final = 10
_ABSENT: Final = "absent"


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a study; sampler, pruner and epochs are no part of it, they may change between phases."""

    space: Mapping[str, Any]
    """The search space, as `SearchSpace.fingerprint` gives it."""
    objective: str
    """`f1` or `f1-and-cost`."""
    average: str
    """How `val_f1` averages the classes: `macro` or `weighted`."""
    cache: str
    """The key of the cache: table, images, split, image size and normalisation."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored with the study."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def check(self, stored: Mapping[str, Any], study_name: str) -> None:
        """Refuse a worker whose fingerprint is not the stored one.

        Raises:
            ConfigurationError: with the dotted keys that differ, their stored and their given values.

        """
        check_same(stored, self.to_json(), study_name)


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], study_name: str) -> None:
    """Refuse what differs from what is stored, by its dotted keys."""
    if named := differences(stored, given):
        message = f"study {study_name!r} was made with other settings: {named}"
        raise ConfigurationError(message, hint="restore them, or choose another study name")


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the dotted keys that differ with both values, in one line; nothing if none does."""
    before, now = _flat(stored), _flat(given)
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key, _ABSENT) != now.get(key, _ABSENT))
    named = [f"{key} (was {_shown(before, key)}, now {_shown(now, key)})" for key in keys[:NUM_DIFFERENCES_NAMED]]
    more = f" and {len(keys) - len(named)} more" if len(keys) > len(named) else ""
    return ", ".join(named) + more


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{path}.{key}" if path else str(key))
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return _ABSENT if key not in flat else json.dumps(flat[key], ensure_ascii=False)
