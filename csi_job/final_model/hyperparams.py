"""The file of hyperparameters that the final model starts from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.trial.hyperparameters import Hyperparameters

MAX_BYTES = 10_000_000  # an optimized_params.json of hundreds of candidates is far below it
HINT = "use models/hyperopt/<study>_best_params.json, or write a file like it"


@dataclass(frozen=True)
class HyperparamsFile:
    """What a hyperparameters file says.

    Args:
        params: the hyperparameters.
        study: the study they are from, or that the results are named after.
        max_epochs: epochs at most.
        trial: number of the trial they are from, if any.
        value: validation F1 of that trial, if any.
        is_search_result: the file names its study and was not confirmed over seeds yet, so candidates are looked for.
        is_confirmed: the file is the result of an earlier confirmation.
        cache: key of the cache that was searched on, if the file says so.

    """

    params: Hyperparameters
    study: str
    max_epochs: int
    trial: int | None = None
    value: float | None = None
    is_search_result: bool = False
    is_confirmed: bool = False
    cache: str = ""


def read_hyperparams(path: Path, *, default_study: str, default_max_epochs: int) -> HyperparamsFile:
    """Read `<study>_best_params.json`, `<study>_optimized_params.json`, or a file written by hand.

    A file by hand holds the hyperparameters by name, alone or under `params` beside `study` and `max_epochs`.

    Args:
        path: the JSON file.
        default_study: names the results of a file without a study.
        default_max_epochs: where the file has no `max_epochs`.

    Raises:
        ConfigurationError: no such file, no JSON object, an unknown name or an illegal value.

    """
    content = _content(path)
    params = content.get("params", content)
    if not isinstance(params, dict) or not params:
        what = f"{path.name} holds no hyperparameters"
        raise ConfigurationError(what, got=params, allowed="a JSON object of them, or one under `params`", hint=HINT)
    has_form = "params" in content
    study = content.get("study") if has_form else None
    return HyperparamsFile(
        params=_hyperparameters(params, path),
        study=_study_name(default_study if study is None else study, path),
        max_epochs=_count(content.get("max_epochs") if has_form else None, default_max_epochs, path),
        trial=content["trial"] if has_form and _is_whole(content.get("trial")) else None,
        value=_finite(content.get("value")) if has_form else None,
        is_search_result=study is not None and content.get("confirmed") is not True,
        is_confirmed=has_form and content.get("confirmed") is True,
        cache=_cache(content) if has_form else "",
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            what = "the hyperparameters file is far too large"
            raise ConfigurationError(what, got=str(path), hint=HINT)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        what = f"the hyperparameters file cannot be read ({error.strerror})"
        raise ConfigurationError(what, got=str(path), hint=HINT) from None
    except (ValueError, RecursionError):
        what = "the hyperparameters file is not JSON"
        raise ConfigurationError(what, got=str(path), hint=HINT) from None
    if not isinstance(content, dict):
        what = f"{path.name} must hold a JSON object"
        raise ConfigurationError(what, got=content, hint=HINT)
    return content


def _hyperparameters(params: dict[str, Any], path: Path) -> Hyperparameters:
    try:
        return Hyperparameters.from_params(params)
    except CsiJobError as error:
        what = f"{path.name}: {error}"
        raise ConfigurationError(what) from None


def _study_name(name: Any, path: Path) -> str:
    """Refuse names that would lead out of the folder of results; a file from elsewhere is not to be trusted."""
    is_plain = isinstance(name, str) and name.strip(". ") and len(name) <= 100  # noqa: PLR2004 - as StudySettings has it
    if not is_plain or any(character in "/\\" or ord(character) < 32 for character in name):  # noqa: PLR2004
        what = f"{path.name}: study cannot be used as a name"
        raise ConfigurationError(what, got=name, allowed="1 to 100 characters, no slashes")
    return str(name)


def _count(value: Any, default: int, path: Path) -> int:
    if value is None:
        return default
    if not _is_whole(value) or value < 1:
        what = f"{path.name}: max_epochs cannot be used"
        raise ConfigurationError(what, got=value, allowed="a whole number from 1")
    return int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _cache(content: dict[str, Any]) -> str:
    """Return the key of the cache: in the study's fingerprint, or in the file itself once confirmed."""
    fingerprint = content.get("fingerprint")
    cache = fingerprint.get("cache") if isinstance(fingerprint, dict) else content.get("cache")
    return cache if isinstance(cache, str) else ""
