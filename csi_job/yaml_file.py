"""Read YAML files that may be damaged, or may be meant to do damage."""

import math
import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from csi_job.errors import ConfigurationError

_MAX_YAML_CHARACTERS = 100_000
_MAX_YAML_NODES = 10_000  # with every alias replaced by what it stands for
_MAX_INTEGER_CHARACTERS = 40


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does, and rejects duplicate keys and aliases that grow without end."""

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

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value.startswith(("0x", "0o")) else 10)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return str(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 or 1.2 reads as a number, since other programs read our files too."""


# YAML 1.1, which PyYAML reads, takes 010 for 8, 1:30 for 90 and 1e-5 for a text.
_NUMBERS = {
    "tag:yaml.org,2002:int": r"^([-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)$",
    "tag:yaml.org,2002:float": r"^[-+]?((\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF|nan|NaN|NAN))$",
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))


# Values of YAML 1.1 for which it has no text; in 1.2 they are text, which Helm writes without quotes.
for _tag in ("value", "merge"):  # = and <<
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_text)


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


def parse_yaml(text: str) -> Any:
    """Parse YAML; raise `YAMLError` for whatever is wrong with it."""
    if len(text) > _MAX_YAML_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"it is longer than {_MAX_YAML_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except ValueError:  # e.g. 2024-13-45, which looks like a date
        raise yaml.MarkedYAMLError(problem="a value is not a valid date or number; put it in quotes") from None
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from None


def yaml_line(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf
    )
    return text.removesuffix("\n").removesuffix("\n...")


def yaml_problem(error: yaml.YAMLError) -> str:
    """Return the parser's message without the word it quotes last: what looks like an alias may be a password."""
    problem = (getattr(error, "problem", None) or "not YAML").removeprefix("but ")
    return re.sub(r" '[^<' ][^ ]+'$", "", problem)


def read_variable(name: str, text: str, *, is_secret: bool) -> Any:
    """Read the value of an environment variable; raise `ConfigurationError`, without it if it is secret."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        message = f"the variable {name} is not valid YAML: {yaml_problem(error)}"
        raise ConfigurationError(message, got=None if is_secret else text) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a file; raise `ConfigurationError` for whatever is wrong with it."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            tree = parse_yaml(file.read(_MAX_YAML_CHARACTERS + 1))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text: save it as UTF-8"
        raise ConfigurationError(f"the settings file cannot be read ({reason})", got=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        hint = "see `csi-job config init`"
        raise ConfigurationError(f"{path}{place} is not valid YAML: {yaml_problem(error)}", hint=hint) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"{path} must contain a mapping of settings", got=tree, hint="see `csi-job config init`"
        )
    return tree
