"""The settings tree: assembled from the sections, and read from flags, environment, a YAML file and defaults."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError

from csi_job.cache.settings import CacheSettings
from csi_job.errors import ConfigurationError
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.final_model.settings import FinalModelSettings
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.settings import Section
from csi_job.storage.settings import StorageSettings
from csi_job.study.settings import StudySettings
from csi_job.tracking.settings import TrackingSettings
from csi_job.trial.parameter import Parameter
from csi_job.trial.settings import TrialSettings
from csi_job.trial.space import Baseline, SearchSpace
from csi_job.work_folder import WorkFolder

ENVIRONMENT_PREFIX = "CSI_JOB_"
# Variables of single flags: the log's format, and the target of `study copy`.
NOT_SETTINGS = {"CSI_JOB_LOG_FORMAT", "CSI_JOB_TO_URL", "CSI_JOB_TO_PASSWORD", "CSI_JOB_TO_PASSWORD_FILE"}
_MAX_YAML_CHARACTERS = 100_000
_MAX_YAML_NODES = 10_000  # with every alias replaced by what it stands for
_MAX_INTEGER_CHARACTERS = 40
Tree = dict[str, Any]


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
    variables = _from_environment(os.environ if environment is None else environment)
    origins: dict[str, str] = {}
    trees: list[Tree] = []
    if config_file is not None:
        tree = _from_file(config_file)
        trees.append(tree)
        origins |= dict.fromkeys(_paths(tree), f"file {config_file}")
    for path, (name, value) in variables.items():
        trees.append(_nested(path, value))
        origins[path] = f"variable {name}"
    for path, value in (flags or {}).items():
        trees.append(_nested(path, value))
        origins[path] = f"flag {(flag_names or {}).get(path, path)}"
    try:
        settings = Settings.model_validate(reduce(_merged, trees, Tree()))
    except ValidationError as error:
        raise _one_line(error, origins) from None
    return LoadedSettings(settings, origins)


def walk(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield `(dotted path, help text, value)` of every setting, in order."""
    for name, field in type(section).model_fields.items():
        path, value = f"{prefix}{name}", getattr(section, name)
        if _has_fields(value):
            yield from walk(value, f"{path}.")
        else:
            yield path, field.description or "", value


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does (`1e-5` is one), and rejects duplicate keys and aliases that grow without end."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _num_nodes(node, {}) > _MAX_YAML_NODES:
            problem = f"it has more than {_MAX_YAML_NODES} values, counting each at every alias"
            raise yaml.MarkedYAMLError(problem=problem)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is a mapping or a list instead of a name"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _num_nodes(node: yaml.Node, counted: dict[yaml.Node, int]) -> int:
    """Return the number of nodes with every alias written out, visiting each once; 0 marks one being visited."""
    if node not in counted:
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_INTEGER_CHARACTERS:
            raise yaml.MarkedYAMLError(problem="a number has too many digits", problem_mark=node.start_mark)
        counted[node] = 0
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        below = () if isinstance(node, yaml.ScalarNode) else parts
        counted[node] = 1 + sum(_num_nodes(part, counted) for part in below)
    elif counted[node] == 0:
        raise yaml.MarkedYAMLError(problem="an alias refers to a part that contains it", problem_mark=node.start_mark)
    return counted[node]


def _parse(text: str) -> Any:
    """Parse YAML; raise `YAMLError` for whatever is wrong with it."""
    if len(text) > _MAX_YAML_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"it is longer than {_MAX_YAML_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except ValueError:  # e.g. 2024-13-45, which looks like a date
        raise yaml.MarkedYAMLError(problem="a value is not a valid date or number; put it in quotes") from None
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from None


def _problem(error: yaml.YAMLError) -> str:
    """Return the parser's message without the word it quotes last: what looks like an alias may be a password."""
    problem = getattr(error, "problem", None) or "not YAML"
    return re.sub(r" '[^<' ][^ ]+'$", "", problem)


def _from_file(path: Path) -> Tree:
    try:
        with path.open(encoding="utf-8-sig") as file:
            tree = _parse(file.read(_MAX_YAML_CHARACTERS + 1))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigurationError(f"the settings file cannot be read ({reason})", got=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        hint = "see `csi-job config init`"
        raise ConfigurationError(f"{path}{place} is not valid YAML: {_problem(error)}", hint=hint) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"{path} must contain a mapping of settings", got=tree, hint="see `csi-job config init`"
        )
    return tree


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Return `{dotted path: (variable, value)}`; mappings and lists are parsed as YAML, unless the setting is text."""
    found = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in NOT_SETTINGS:
            continue
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        try:
            kind = _type_of(path)
            is_text = kind in (str, SecretStr, Path) or get_origin(kind) is Literal  # taken literally
            value = _parse(text) if text[:1] in ("{", "[") and not is_text else text
        except yaml.YAMLError as error:
            message = f"the variable {name} is not valid YAML: {_problem(error)}"
            raise ConfigurationError(message, got=None if _may_be_secret(path) else text) from None
        found[path] = (name, value)
    return found


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
        yield path
        if isinstance(value, dict):
            yield from _paths(value, f"{path}.")


def _one_line(error: ValidationError, origins: Mapping[str, str]) -> ConfigurationError:
    """Turn pydantic's first error into one line."""
    first, num_more = error.errors()[0], error.error_count() - 1
    path = ".".join(str(part) for part in first["loc"])
    origin = _origin(path, origins)
    source = "" if origin == "default" else f" ({origin})"
    more = f"; {num_more} more invalid setting(s)" if num_more else ""
    if first["type"] == "extra_forbidden":
        hint = f"see `csi-job config show`{more}"
        return ConfigurationError(f"unknown setting {path}{source}", allowed=_siblings(path), hint=hint)
    what, hint = first["msg"].removeprefix("Value error, "), "see `csi-job config show`"
    section = _type_of(path)
    if first["type"] == "model_type" and _is_section(section):
        inner = f"{path}.{next(iter(section.model_fields))}"
        variable = ENVIRONMENT_PREFIX + inner.upper().replace(".", "__")
        what, hint = "this is a section of settings, not a single one", f"set {inner}, or the variable {variable}"
    hidden = _may_be_secret(path) or first["input"] is None or isinstance(first["input"], (dict, list))
    got = None if hidden else first["input"]
    return ConfigurationError(f"{path or 'settings'}{source}: {what}{more}", got=got, hint=hint)


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


def _siblings(path: str) -> str:
    """Return the settings beside an unknown one, or the top-level ones."""
    section = _type_of(path.rpartition(".")[0])
    return ", ".join(sorted(section.model_fields) if _is_section(section) else Settings.model_fields)


def format_settings(loaded: LoadedSettings) -> str:
    """Return every setting as `path: value  # origin`, with secrets masked."""
    lines = [(f"{path}: {_shown(value)}", _origin(path, loaded.origins)) for path, _, value in walk(loaded.settings)]
    width = min(max(len(line) for line, _ in lines), 60)
    return "\n".join(f"{line:<{width}}  # {origin}" for line, origin in lines)


def commented_yaml() -> str:
    """Return all settings with their defaults as YAML, each below its help text."""
    lines = [
        "# Settings of csi-job. Flags and variables (CSI_JOB_STUDY__NUM_TRIALS=20) take precedence over this file."
    ]
    lines += _yaml_lines(Settings(), "")
    return "\n".join(lines) + "\n"


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        comment = f"{indent}# {' '.join((field.description or '').split())}"
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
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    text: str = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
