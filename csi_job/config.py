"""The settings tree: assembled from the sections, and read from flags, environment, a YAML file and defaults."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError

from csi_job.cache.settings import CacheSettings
from csi_job.errors import NUM_PROBLEMS_NAMED, ConfigurationError
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.final_model.settings import FinalModelSettings
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.settings import Section, beyond_bounds, help_of
from csi_job.storage.settings import StorageSettings
from csi_job.study.settings import StudySettings
from csi_job.tracking.settings import TrackingSettings
from csi_job.trial.parameter import Parameter
from csi_job.trial.settings import TrialSettings
from csi_job.trial.space import Baseline, SearchSpace
from csi_job.work_folder import WorkFolder

if TYPE_CHECKING:
    from csi_job.study.record import StudyRecord

logger = logging.getLogger(__name__)
ENVIRONMENT_PREFIX = "CSI_JOB_"
# Variables of single flags: the log's format, and the target of `study copy`.
NOT_SETTINGS = {"CSI_JOB_LOG_FORMAT", "CSI_JOB_TO_URL", "CSI_JOB_TO_PASSWORD", "CSI_JOB_TO_PASSWORD_FILE"}
# Instead of pydantic's, for those who know no Python.
PLAIN_WORDS = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "path_type": "must be a path",
    "string_pattern_mismatch": "must not begin with a dot or contain slashes or control characters",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
}
OWN_KINDS = {"value_error", "space"}  # errors of our validators, which name the value themselves
Tree = dict[str, Any]
STUDY = "study"  # the origin of a value that a study was created with


class Settings(Section):
    """All settings, in the order the data flows."""

    work: Path = Path()
    """Folder for everything csi-job writes: cache, studies, checkpoints, models."""
    radiographs: RadiographsSettings = RadiographsSettings()
    """Where the radiographs are, and how they are read and split."""
    cache: CacheSettings = CacheSettings()
    """How the radiographs are cached for training."""
    space: SearchSpace = Field(default_factory=SearchSpace)
    """The hyperparameters to search."""
    baseline: Baseline = Baseline()
    """The hyperparameters of trial 0 and of the baseline model, against which the final model is compared."""
    trial: TrialSettings = TrialSettings()
    """How each trial is trained."""
    study: StudySettings = StudySettings()
    """What is optimised, for how long, and with which sampler and pruner."""
    storage: StorageSettings = StorageSettings()
    """The study database."""
    tracking: TrackingSettings = TrackingSettings()
    """Experiment tracking."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How metrics and their confidence intervals are computed."""
    final_model: FinalModelSettings = FinalModelSettings()
    """How the best trial is confirmed and the final model trained."""

    @property
    def folder(self) -> WorkFolder:
        """The paths of all files under `work`."""
        return WorkFolder(self.work)


@dataclass(frozen=True)
class LoadedSettings:
    """The current settings; `origins` says for each dotted path that was given where its value comes from."""

    settings: Settings
    origins: dict[str, str]
    given: Tree = dataclasses.field(default_factory=dict, repr=False)
    """The values that were given."""
    study: StudyRecord | None = None
    """The study whose settings take the place of the defaults."""

    def is_given(self, path: str) -> bool:
        """Return whether a setting was given in this call: by flag, variable or file."""
        return self.origins.get(path, STUDY) != STUDY

    def is_flag(self, path: str) -> bool:
        """Return whether a setting was given by a flag."""
        return self.origins.get(path, "").startswith("flag ")

    def over(self, study: StudyRecord) -> LoadedSettings:
        """Return the settings with those of a study in place of the defaults.

        Raises:
            ConfigurationError: a stored value is not valid, or not together with those given.
        """
        stored = _known_part(study.settings(), Settings)
        origins = dict.fromkeys(_paths(stored), STUDY) | self.origins
        tree = _merged(stored, self.given)
        try:
            settings = Settings.model_validate(tree)
        except ValidationError as error:
            settings = _validated(_within_bounds(tree, error, origins), origins)
        return LoadedSettings(settings, origins, self.given, study)


def load_settings(
    flags: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flag_names: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Merge the sources: flags take precedence over variables, then the YAML file, then the defaults.

    Flags are values by dotted path, e.g. `{"study.num_trials": 20}`; the variable `CSI_JOB_STUDY__NUM_TRIALS` (default:
    of this process) sets the same. `flag_names` are the flags by dotted path, for origins and errors.

    Raises:
        ConfigurationError: an unreadable file, an unknown key or an invalid value, by its dotted path.
    """
    names = flag_names or {}
    variables = [*_from_environment(os.environ if environment is None else environment)]
    sources: list[tuple[str, Tree]] = []
    if config_file is not None:
        from csi_job.yaml_file import read_yaml

        sources += [(f"file {config_file}", _without_empty_sections(read_yaml(config_file), Settings))]
    sources += variables
    sources += [(f"flag {names.get(path, path)}", _nested(path, value)) for path, value in (flags or {}).items()]
    origins = {path: origin for origin, tree in sources for path in _paths(tree)}
    given = reduce(_merged, (tree for _, tree in sources), Tree())
    return LoadedSettings(_validated(given, origins), origins, given)


def _validated(tree: Tree, origins: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _one_line(error, origins) from None


def _within_bounds(tree: Tree, error: ValidationError, origins: Mapping[str, str]) -> Tree:
    """Return a tree in which what a study stores beyond bounds that an earlier version did not have is at the bound."""
    for place, value, bound in beyond_bounds(error):
        path = ".".join(map(str, place))
        if _origin(path, origins) == STUDY:
            values = {"setting": path, "value": value, "bound": bound}
            logger.warning("the study stores %(setting)s = %(value)s; using %(bound)s, today's limit", values)
            tree = _merged(tree, _nested(path, bound))
    return tree


def _known_part(tree: Tree, section: type[BaseModel]) -> Tree:
    """Return a stored tree without the settings that this version does not have."""
    kinds: dict[str, Any] = {name: info.annotation for name, info in section.model_fields.items()}
    return {
        name: _known_part(value, kinds[name]) if isinstance(value, dict) and _is_section(kinds[name]) else value
        for name, value in tree.items()
        if name in kinds
    }


def _without_empty_sections(tree: Tree, section: type[BaseModel]) -> Tree:
    """Return a file's tree without the sections whose lines are all commented out."""
    result = {}
    for name, value in tree.items():
        kind: Any = section.model_fields[name].annotation if name in section.model_fields else None
        is_section = _is_section(kind) and not issubclass(kind, Parameter)
        if is_section and isinstance(value, dict):
            result[name] = _without_empty_sections(value, kind)
        elif value is not None or not is_section:
            result[name] = value
    return result


def walk(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(dotted path, value)` of every setting, in order."""
    for name, value in section:
        if _has_fields(value):
            yield from walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Tree]]:
    """Yield each variable's origin and tree; YAML's mappings, lists and null are parsed, unless the setting is text."""
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in NOT_SETTINGS:
            continue
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        kind, value = _type_of(path), text
        is_text = kind in (str, SecretStr, Path) or get_origin(kind) is Literal  # taken literally
        if (text[:1] in ("{", "[") or text == "null") and not is_text:
            from csi_job.yaml_file import read_variable

            value = read_variable(name, text, is_secret=_may_be_secret(path))
        yield f"variable {name}", _nested(path, value)


def _nested(path: str, value: Any) -> Tree:
    """Return `{"a": {"b": value}}` for the path `a.b`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _merged(base: Tree, over: Tree, parent: str = "") -> Tree:
    """Return `base` overridden by `over`, key by key; a searched parameter is replaced, not merged.

    A plain value in the place of a section is kept, so that validation rejects it.
    """
    result = dict(base)
    for key, value in over.items():
        if key not in result or not isinstance(value, dict) or parent == "space":
            result[key] = value
        elif isinstance(result[key], dict):
            result[key] = _merged(result[key], value, key)
    return result


def _paths(tree: Tree, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        kind = _type_of(path)
        if isinstance(value, dict) and _is_section(kind) and not issubclass(kind, Parameter):
            yield from _paths(value, f"{path}.")
        else:
            yield path


def _meant(path: str, siblings: Sequence[str], value: object) -> str:
    """Return what to do about an unknown setting or section: it is misspelt, or it belongs in another section."""
    section = path.rpartition(".")[0]
    known = [name for name, _ in walk(Settings())]
    beside = [f"{section}.{name}".lstrip(".") for name in siblings]
    if value is None or isinstance(value, dict):  # it is like a section
        known += dict.fromkeys(name.rpartition(".")[0] for name in known)
    else:  # what has one value is no section
        beside = [name for name in beside if name not in Settings.model_fields or name in known]
    for names, num_shown in ((beside, 2), (known, 1)):
        if near := difflib.get_close_matches(_last(path).lower(), map(_last, names), n=num_shown, cutoff=0.7):
            return f"did you mean {' or '.join(name for name in names if _last(name) in near)}?"
    return "see `csi-job config show`"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _one_line(error: ValidationError, origins: Mapping[str, str]) -> ConfigurationError:
    """Turn pydantic's first error into one line."""
    first, *others = error.errors()
    others_at = dict.fromkeys(_setting_at(each["loc"]) for each in others)
    others_at.pop(_setting_at(first["loc"]), None)
    path = ".".join(str(part) for part in first["loc"])
    origin = _origin(path, origins)
    source = "" if origin == "default" else f" ({origin})"
    named = ", ".join([*others_at][:NUM_PROBLEMS_NAMED]) + ", …" * (len(others_at) > NUM_PROBLEMS_NAMED)
    more = f"; {len(others_at)} more invalid setting{'s'[: len(others_at) > 1]}: {named}" if others_at else ""
    section, parent = _type_of(path), _type_of(path.rpartition(".")[0])
    if first["type"] == "extra_forbidden" and section is not None:  # a dotted key
        key = str(first["loc"][-1])
        nested = f"{key.replace('.', ': {')}: …{'}' * key.count('.')}"
        return ConfigurationError(f"unknown setting '{key}'{source}", hint=f"write it as {nested}{more}")
    if first["type"] == "extra_forbidden":
        siblings = sorted(parent.model_fields) if _is_section(parent) else list(Settings.model_fields)
        hint = _meant(path, siblings, first["input"]) + more
        return ConfigurationError(f"unknown setting {path}{source}", allowed=siblings, hint=hint)
    kind, value, hint = first["type"], first["input"], "see `csi-job config show`"
    what = PLAIN_WORDS.get(kind, first["msg"].removeprefix("Value error, ").replace("Input should", "must"))
    if kind == "model_type" and _is_section(section) and issubclass(section, Parameter):
        what = "a parameter is a mapping, e.g. {value: 32}, {choices: [16, 32]} or {low: 16, high: 64}"
    elif kind == "model_type" and _is_section(section):
        inner = f"{path}.{next(iter(section.model_fields))}"
        variable = ENVIRONMENT_PREFIX + inner.upper().replace(".", "__")
        what, hint = "this is a section of settings, not a single one", f"set {inner}, or the variable {variable}"
    elif isinstance(value, bool) and kind not in ("int_type", "float_type"):
        hint = "YAML reads no, off, yes and on as false and true; put the word in quotes"
    elif kind == "string_type" and value is not None:
        hint = "put it in quotes"
    hidden = _may_be_secret(path) or isinstance(value, (dict, list))
    got = None if hidden or kind in OWN_KINDS else "null" if value is None else value
    return ConfigurationError(f"{path or 'settings'}{source}: {what}{more}", got=got, hint=hint)


def _setting_at(place: Sequence[int | str]) -> str:
    """Return the path of the setting at a place, which may be within its value."""
    path = ".".join(map(str, place))
    while "." in path and not _is_section(_type_of(path.rpartition(".")[0])):
        path = path.rpartition(".")[0]
    return path


def _type_of(path: str) -> Any:
    """Return the type of the setting or section at a path, without `| None`; None if there is no such path."""
    kind: Any = Settings
    for name in path.split("."):
        field = kind.model_fields.get(name) if _is_section(kind) else None
        if field is None:
            return None
        kind = field.annotation
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not types.NoneType)
    return kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _may_be_secret(path: str) -> bool:
    """Return whether a value may contain a password: anything under `storage` except numbers, misspelt or not."""
    return (path.startswith("storage") and _type_of(path) is not float) or "password" in path


def format_settings(loaded: LoadedSettings) -> str:
    """Return every setting as `path: value  # origin`, with secrets masked."""
    lines = [(f"{path}: {_shown(value)}", _origin(path, loaded.origins)) for path, value in walk(loaded.settings)]
    width = min(max(len(line) for line, _ in lines), 60)
    return "\n".join(f"{line:<{width}}  # {origin}" for line, origin in lines)


def commented_yaml() -> str:
    """Return all settings with their defaults as YAML, each below its help text."""
    head = "# Settings of csi-job. Flags and variables (CSI_JOB_STUDY__NUM_TRIALS=20) take precedence over this file."
    return "\n".join([head, *_yaml_lines(Settings(), "")]) + "\n"


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    for name, value in section:
        comment = f"{indent}# {' '.join(help_of(type(section), name).split())}"
        yield from (comment,) if indent else ("", comment)
        if _has_fields(value):
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_shown(value)}"


def _has_fields(value: Any) -> bool:
    """Return whether a value is a section; a searched parameter is a value, written on one line."""
    return isinstance(value, Section) and not isinstance(value, Parameter)


def _origin(path: str, origins: Mapping[str, str]) -> str:
    """Return what set a path, its nearest parent, or something below it."""
    above = [given for given in origins if f"{path}.".startswith(f"{given}.")]
    below = [given for given in origins if given.startswith(f"{path}.")]
    return origins[max(above, key=len)] if above else origins[below[0]] if below else "default"


def _shown(value: Any) -> str:
    """Return a value as one line of YAML, with secrets masked."""
    if isinstance(value, SecretStr):
        return "'********'"
    from csi_job.yaml_file import yaml_line

    return yaml_line(TypeAdapter(Any).dump_python(value, mode="json"))
