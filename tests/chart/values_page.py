"""Print docs/values.md: each value of the chart with its default and its comment in helm/values.yaml; `make values`."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

VALUES = Path(__file__).parents[2] / "helm" / "values.yaml"
LINE = re.compile(r"( *)(# ?)?(\w+:)?(.*)")
HEAD = """# Values of the chart

Generated from [values.yaml](../helm/values.yaml) by `make values`; how they work together is in
[kubernetes.md](kubernetes.md).

| Value | Default | |
|---|---|---|
"""


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, default as JSON (empty for a section) and description of each value that has its own line."""
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        indent, is_comment, key, rest = LINE.fullmatch(line).groups()  # type: ignore[union-attr] # matches any line
        if is_comment:
            comment.append(f"{key or ''}{rest}")
            continue
        if key:
            path = [*path[: len(indent) // 2], key[:-1]]
            if rest.strip() or comment:
                yield ".".join(path), json.dumps(yaml.safe_load(rest)) if rest.strip() else "", " ".join(comment)
        comment = []


def page() -> str:
    """Return docs/values.md."""
    found = rows(VALUES.read_text(encoding="utf-8"))
    return HEAD + "".join(f"| `{path}` | {f'`{value}`' if value else ''} | {text} |\n" for path, value, text in found)


if __name__ == "__main__":
    sys.stdout.write(page())
