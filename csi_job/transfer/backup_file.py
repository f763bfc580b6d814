"""The file of a backup: JSON, a line a trial, that says what it is and holds the checksum of what stands before it."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import optuna
from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError
from csi_job.transfer.stored import StoredLease, StoredTrial

FORMAT: Final = "csi-job study backup"
VERSION: Final = 1
GZIP_MAGIC: Final = b"\x1f\x8b"
_BEGINNING: Final = f'{{"format":"{FORMAT}","version":'.encode()
_END: Final = re.compile(rb'"sha256":"([0-9a-f]{64})"}\n')
_NOT_FINITE: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True)
class Backup:
    """One study; attributes are JSON texts as stored."""

    name: str
    created: datetime
    directions: list[StudyDirection]
    user_attrs: dict[str, str]
    system_attrs: dict[str, str]
    trials: list[StoredTrial]

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes as Python values."""
        return {key: json.loads(text) for key, text in self.user_attrs.items()}

    def num_in(self, *states: TrialState) -> int:
        """Return the number of trials in these states."""
        return sum(trial.state in states for trial in self.trials)


def encode(backup: Backup, advance: Callable[[int], None] = lambda _num_trials: None) -> bytes:
    """Return the content of the file, uncompressed; `advance` is told how many more trials are in it."""
    texts = dict.fromkeys(text for trial in backup.trials for _, text in trial.params.values())
    places = {text: place for place, text in enumerate(texts)}
    study = {
        "name": backup.name,
        "created": utc(backup.created),
        "directions": [direction.name for direction in backup.directions],
        "user_attrs": backup.user_attrs,
        "system_attrs": backup.system_attrs,
    }
    lines = [f'{{"format":"{FORMAT}","version":{VERSION},"optuna":"{optuna.__version__}",', f'"study":{_json(study)},']
    lines += [f'"distributions":{_json(list(texts))},', '"trials":[']
    for trial in backup.trials:
        comma = "," if trial is not backup.trials[-1] else ""
        lines.append(_json(_from_trial(trial, places)) + comma)
        advance(1)
    content = "\n".join([*lines, "],", ""]).encode()
    return content + f'"sha256":"{hashlib.sha256(content).hexdigest()}"}}\n'.encode()


def decode(data: bytes) -> Backup:
    """Return the study in a file's content, compressed or not.

    Raises:
        ConfigurationError: another file, another format version, or one that is cut short or altered.

    """
    content = _uncompressed(data)
    _check(content)
    try:
        return _backup(json.loads(content))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        message = f"the backup's content cannot be understood ({type(error).__name__})"
        raise ConfigurationError(message, hint="its checksum is right, so it was made by another program") from None


def _uncompressed(data: bytes) -> bytes:
    if not data.startswith(GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        raise _damaged("its compression ends early or does not check out") from None


def _check(content: bytes) -> None:
    """Refuse what is not a whole and unaltered backup of this version."""
    if not content.startswith(_BEGINNING):
        what = "this file is no backup of a study" if content else "this file is empty"
        raise ConfigurationError(what, hint="make a backup: csi-job study backup NAME FILE")
    version = content[len(_BEGINNING) :].partition(b",")[0]
    if version.isdigit() and int(version) != VERSION:
        message = "the backup has another format version"
        hint = "restore it with the version of csi-job that made it"
        raise ConfigurationError(message, got=int(version), allowed=VERSION, hint=hint)
    start = content.rfind(b"\n", 0, -1) + 1
    end = _END.fullmatch(content[start:])
    if end is None:
        raise _damaged("its end is missing")
    if hashlib.sha256(content[:start]).hexdigest().encode() != end[1]:
        raise _damaged("its checksum does not fit")


def _damaged(how: str) -> ConfigurationError:
    return ConfigurationError(f"the backup is damaged or was altered: {how}", hint="use another copy of it")


def _backup(tree: Mapping[str, Any]) -> Backup:
    study, texts = tree["study"], tree["distributions"]
    for text in texts:
        json_to_distribution(text)
    trials = [_to_trial(part, texts) for part in tree["trials"]]
    if [trial.number for trial in trials] != list(range(len(trials))):
        message = "the numbers of the trials have gaps"
        raise ValueError(message)
    return Backup(
        name=str(study["name"]),
        created=_moment(study["created"]),
        directions=[StudyDirection[name] for name in study["directions"]],
        user_attrs=_to_attributes(study["user_attrs"]),
        system_attrs=_to_attributes(study["system_attrs"]),
        trials=trials,
    )


def _from_trial(trial: StoredTrial, places: Mapping[str, int]) -> dict[str, Any]:
    """Return a trial as JSON-able data; parts that it lacks are left out."""
    parts = {
        "number": trial.number,
        "state": trial.state.name,
        "datetime_start": trial.datetime_start and utc(trial.datetime_start),
        "datetime_complete": trial.datetime_complete and utc(trial.datetime_complete),
        "params": {name: [_number(value), places[text]] for name, (value, text) in trial.params.items()},
        "values": [_number(value) for value in trial.values],
        "intermediate_values": [[step, _number(value)] for step, value in trial.steps.items()],
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "lease": trial.lease and asdict(trial.lease),
    }
    return {name: part for name, part in parts.items() if part not in (None, [], {})}


def _to_trial(parts: Mapping[str, Any], texts: list[str]) -> StoredTrial:
    lease = parts.get("lease")
    trial = StoredTrial(
        number=_whole(parts["number"]),
        state=TrialState[parts["state"]],
        datetime_start=_to_time(parts.get("datetime_start")),
        datetime_complete=_to_time(parts.get("datetime_complete")),
        params={name: (_to_number(value), texts[place]) for name, (value, place) in parts.get("params", {}).items()},
        values=[_to_number(value) for value in parts.get("values", [])],
        steps={_whole(step): _to_number(value) for step, value in parts.get("intermediate_values", [])},
        user_attrs=_to_attributes(parts.get("user_attrs", {})),
        system_attrs=_to_attributes(parts.get("system_attrs", {})),
        lease=None if lease is None else StoredLease(**lease),
    )
    trial.external_params()  # a choice that its distribution lacks is an IndexError here, and would be one for ever
    return trial


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _number(value: float) -> float | str:
    """Return a number as JSON has it: one that is not finite becomes a word."""
    return value if math.isfinite(value) else str(value)


def _to_number(value: Any) -> float:
    return _NOT_FINITE[value] if isinstance(value, str) else float(value)


def _whole(value: Any) -> int:
    if isinstance(value, int):
        return value
    raise TypeError(value)


def _to_attributes(attributes: Mapping[str, Any]) -> dict[str, str]:
    for text in attributes.values():
        json.loads(text)
    return dict(attributes)


def utc(moment: datetime) -> str:
    """Return a naive time in UTC as ISO 8601, to the microsecond."""
    return f"{moment.isoformat(timespec='microseconds')}Z"


def _to_time(text: str | None) -> datetime | None:
    return None if text is None else _moment(text)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)
