"""Export every trial of a study: as CSV for spreadsheets, as JSON with everything that is stored."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from csi_job.errors import ConfigurationError
from csi_job.files import STREAM, exists, is_folder, write_csv, write_file
from csi_job.html.format import plural
from csi_job.logs import announced
from csi_job.storage import attributes as stored

OWN_COLUMNS: Final = (
    stored.ATTEMPT,
    stored.BASELINE,
    stored.CANCELLED,
    stored.CURVE,
    stored.INFEASIBLE,
)  # attributes with their own columns


def export_files(dest: Path, study_name: str) -> list[Path]:
    """Return the files of an export: `dest` if it ends in .csv or .json, else one of each in the folder `dest`.

    Raises:
        ConfigurationError: `dest` is another kind of file, or standard output.
    """
    if dest == STREAM:
        message = "an export goes to files, not to standard output"
        raise ConfigurationError(message, got=str(dest), allowed="a folder, or a file that ends in .csv or .json")
    if dest.suffix.lower() in WRITERS and not is_folder(dest):
        return [dest]
    if exists(dest) and not is_folder(dest):
        raise ConfigurationError("an export needs a folder, or a file that ends in .csv or .json", got=str(dest))
    stem = study_name.replace("/", "_").replace("\\", "_")  # other programs allow any name
    return [dest / f"{stem}_trials{suffix}" for suffix in WRITERS]


def write_export(study: optuna.Study, files: Sequence[Path]) -> int:
    """Write the trials to the files of `export_files` and return how many there are.

    If one cannot be written, there is no new one, so that the same command can be run again.
    """
    trials = study.get_trials(deepcopy=False)
    with announced(f"exporting {plural(len(trials), 'trial')}"):
        contents = [WRITERS[file.suffix.lower()](study, trials) for file in files]
    new = [file for file in files if not exists(file)]
    try:
        for file, content in zip(files, contents, strict=True):
            write_file(file, content)
    except BaseException:
        for file in new:
            file.unlink(missing_ok=True)
        raise
    return len(trials)


def to_csv(study: optuna.Study, trials: Sequence[FrozenTrial]) -> bytes:
    """Return one row per trial and one column per parameter, named as in Optuna's `trials_dataframe`.

    UTF-8 with a byte order mark, without which spreadsheets guess another encoding.
    """
    rows = [_row(trial, len(study.directions)) for trial in trials]
    text = io.StringIO(newline="")
    columns = _columns(rows or [_row(create_trial(state=TrialState.WAITING), len(study.directions))])
    cells = ([_cell(row.get(name)) for name in columns] for row in rows)
    write_csv(text, columns, cells, end="\r\n")  # RFC 4180
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def to_json(study: optuna.Study, trials: Sequence[FrozenTrial]) -> bytes:
    """Return everything stored as JSON, one trial per line; non-finite numbers are the strings inf, -inf and nan."""
    attributes = study.user_attrs
    head = {
        "study": study.study_name,
        "exported": _utc(datetime.now(UTC)),
        "objective": attributes.get(stored.OBJECTIVE),
        "directions": [direction.name.lower() for direction in study.directions],
        "target": attributes.get(stored.TARGET),
        "user_attrs": attributes,
    }
    lines = []
    for trial in trials:
        entry = {"values": trial.values, "params": trial.params, "curve": stored.curve_of(trial)}
        attrs = {"user_attrs": trial.user_attrs, "system_attrs": trial.system_attrs}
        lines.append(_json(_common(trial) | entry | attrs))
    text = _json(head).removesuffix("}") + ', "trials": [\n' + ",\n".join(lines) + "\n]}\n"
    return text.encode("utf-8", "backslashreplace")  # JSON's own notation for half a surrogate pair


def _row(trial: FrozenTrial, num_objectives: int) -> dict[str, Any]:
    names = ["value"] if num_objectives == 1 else [f"values_{objective}" for objective in range(num_objectives)]
    row = {**_common(trial), **dict.fromkeys(names), **dict(zip(names, trial.values or (), strict=False))}
    row |= {f"params_{name}": value for name, value in trial.params.items()}
    row |= {f"user_attrs_{key}": value for key, value in trial.user_attrs.items() if key not in OWN_COLUMNS}
    return row | {f"intermediate_values_{epoch}": value for epoch, value in stored.curve_of(trial)}


def _common(trial: FrozenTrial) -> dict[str, Any]:
    start, complete = trial.datetime_start, trial.datetime_complete
    return {
        "number": trial.number,
        "state": trial.state.name,
        "outcome": stored.outcome_of(trial),
        "is_baseline": bool(trial.user_attrs.get(stored.BASELINE)),
        "attempt": trial.user_attrs.get(stored.ATTEMPT),
        "datetime_start": start and _utc(start),
        "datetime_complete": complete and _utc(complete),
        "duration_s": stored.seconds_of(trial),
    }


def _utc(time: datetime) -> str:
    """Return a time, local if it is naive, in UTC as ISO 8601 to the microsecond."""
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of all rows: those of every trial, then parameters, attributes and epochs, each sorted."""

    def place(name: str) -> tuple[int, int, str]:
        for group, prefix in enumerate(("params_", "user_attrs_", "intermediate_values_"), start=1):
            if name.startswith(prefix):
                end = name.removeprefix(prefix)
                return group, int(end) if end.isdecimal() else -1, name  # epochs by number, others by name
        return 0, 0, ""

    return sorted(dict.fromkeys(name for row in rows for name in row), key=place)


def _cell(value: Any) -> str | int | float:
    """Return a value as a cell: lists and mappings as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, (int, float, str)) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


Writer = Callable[[optuna.Study, Sequence[FrozenTrial]], bytes]
WRITERS: Final[dict[str, Writer]] = {".csv": to_csv, ".json": to_json}
