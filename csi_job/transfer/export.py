"""Every trial of a study as CSV, for spreadsheets, and as JSON, with all that is known."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from csi_job.errors import ConfigurationError
from csi_job.files import STREAM, write_file
from csi_job.logs import progress
from csi_job.storage.attributes import ATTEMPT, BASELINE, CANCELLED, CURVE, INFEASIBLE, OBJECTIVE, TARGET, outcome_of
from csi_job.transfer.backup_file import Backup, utc
from csi_job.transfer.stored import StoredTrial

TOLD_APART: Final = (ATTEMPT, BASELINE, CANCELLED, CURVE, INFEASIBLE)  # attributes with a column of their own
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t")  # a spreadsheet would compute such a text
COMMON: Final = ("number", "state", "outcome", "is_baseline", "attempt", "datetime_start", "datetime_complete",
    "duration_s")  # fmt: skip
PAIR: Final = 2
Advance = Callable[[int], None]


def export_files(dest: Path, study_name: str) -> list[Path]:
    """Return the files that an export writes: one that ends in .csv or .json, or one of each in a folder.

    Raises:
        ConfigurationError: `dest` is a file of another kind, or standard output.

    """
    if dest == STREAM:
        message = "an export goes to files, not to standard output"
        raise ConfigurationError(message, got=str(dest), allowed="a folder, or a file that ends in .csv or .json")
    if dest.suffix.lower() in WRITERS and not dest.is_dir():
        return [dest]
    if dest.exists() and not dest.is_dir():
        message = "an export needs a folder, or a file that ends in .csv or .json"
        raise ConfigurationError(message, got=str(dest))
    stem = study_name.replace("/", "_").replace("\\", "_")  # a study of another program may have any name
    return [dest / f"{stem}_trials{suffix}" for suffix in WRITERS]


def write_export(study: Backup, files: Sequence[Path]) -> None:
    """Write the trials to files of `export_files`.

    Raises:
        CsiJobError: a folder cannot be written, or the disk is full.

    """
    with progress("exporting trials", len(study.trials) * len(files), "trials") as advance:
        contents = [WRITERS[file.suffix.lower()](study, advance) for file in files]
    for file, content in zip(files, contents, strict=True):
        write_file(file, content)


def to_csv(study: Backup, advance: Advance = lambda _num_trials: None) -> bytes:
    """Return one row a trial and one column a parameter, under the names of Optuna's `trials_dataframe`.

    UTF-8 with a byte order mark, without which spreadsheets take it for another encoding. Text that a spreadsheet
    would compute is given a leading apostrophe.
    """
    rows = []
    for trial in study.trials:
        rows.append(_row(trial, len(study.directions)))
        advance(1)
    text = io.StringIO(newline="")
    columns = _columns(rows) if rows else [*COMMON, *_objectives(len(study.directions))]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\r\n")  # as RFC 4180 has it
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def to_json(study: Backup, advance: Advance = lambda _num_trials: None) -> bytes:
    """Return all that is known as JSON, one trial a line; numbers that are not finite are the words inf, -inf, nan."""
    attributes = study.attributes()
    head = {
        "study": study.name,
        "exported": utc(study.created),
        "objective": attributes.get(OBJECTIVE),
        "directions": [direction.name.lower() for direction in study.directions],
        "target": attributes.get(TARGET),
        "user_attrs": attributes,
    }
    lines = []
    for trial in study.trials:
        lines.append(_json(_entry(trial)))
        advance(1)
    opening = _json(head).removesuffix("}")
    trials = ",\n".join(lines)
    return f'{opening}, "trials": [\n{trials}\n]}}\n'.encode(
        "utf-8", "backslashreplace"
    )  # as JSON itself writes half a surrogate pair


def _entry(trial: StoredTrial) -> dict[str, Any]:
    attributes = trial.user_attributes()
    return {
        **_common(trial, attributes),
        "values": trial.values or None,
        "params": trial.external_params(),
        "curve": _curve(trial, attributes),
        "user_attrs": attributes,
        "system_attrs": {key: json.loads(text) for key, text in trial.system_attrs.items()},
    }


def _row(trial: StoredTrial, num_objectives: int) -> dict[str, Any]:
    attributes = trial.user_attributes()
    names = _objectives(num_objectives)
    row = {**_common(trial, attributes), **dict.fromkeys(names), **dict(zip(names, trial.values, strict=False))}
    row |= {f"params_{name}": value for name, value in trial.external_params().items()}
    row |= {f"user_attrs_{key}": value for key, value in attributes.items() if key not in TOLD_APART}
    return row | {f"intermediate_values_{epoch}": value for epoch, value in _curve(trial, attributes)}


def _objectives(num_objectives: int) -> list[str]:
    """Return the columns of the values."""
    return ["value"] if num_objectives == 1 else [f"values_{objective}" for objective in range(num_objectives)]


def _common(trial: StoredTrial, attributes: Mapping[str, Any]) -> dict[str, Any]:
    began, ended = trial.datetime_start, trial.datetime_complete
    values = (
        trial.number,
        trial.state.name,
        outcome_of(trial.state, attributes),
        bool(attributes.get(BASELINE)),
        attributes.get(ATTEMPT),
        began and utc(began),
        ended and utc(ended),
        (ended - began).total_seconds() if began and ended else None,
    )
    return dict(zip(COMMON, values, strict=True))


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of all rows: what every trial has, then parameters, attributes and epochs, each sorted."""
    present = dict.fromkeys(name for row in rows for name in row)
    groups = ("params_", "user_attrs_", "intermediate_values_")
    common = [name for name in present if not name.startswith(groups)]
    return [*common, *(name for group in groups for name in _sorted(present, group))]


def _sorted(names: Iterable[str], group: str) -> list[str]:
    """Return the names of a group: epochs by number, others by name."""
    mine = [name for name in names if name.startswith(group)]
    return sorted(mine, key=lambda name: (int(end) if (end := name.removeprefix(group)).isdecimal() else -1, name))


def _curve(trial: StoredTrial, attributes: Mapping[str, Any]) -> list[list[Any]]:
    """Return `[epoch, val_f1]` of every finished epoch, by epoch; with two objectives they are an attribute."""
    pairs: Any = [*trial.steps.items()] or attributes.get(CURVE)
    is_curve = isinstance(pairs, list) and all(map(_is_point, pairs))
    return sorted(([int(epoch), value] for epoch, value in pairs), key=itemgetter(0)) if is_curve else []


def _is_point(pair: Any) -> bool:
    """Whether it is `[epoch, value]`; another program's study may have anything under the name of our curve."""
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == PAIR
    return is_pair and isinstance(pair[0], int | float) and math.isfinite(pair[0])


def _cell(value: Any) -> str | int | float:
    """Return a value as a cell: a list or mapping as JSON, text in one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return value
    text = " ".join(value.splitlines()) if isinstance(value, str) else _json(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return a value with the numbers that JSON does not know as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


WRITERS: Final[dict[str, Callable[[Backup, Advance], bytes]]] = {".csv": to_csv, ".json": to_json}
