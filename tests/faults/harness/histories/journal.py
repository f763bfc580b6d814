"""The journal: every operation of every client with its begin, and its answer and end unless these are unknown."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Operation(NamedTuple):
    kind: str
    study: str
    arguments: tuple[Any, ...]
    answer: tuple[Any, ...] | None
    """None if it is unknown: the client was killed, or the connection lost, before the answer came."""
    begin_s: float
    end_s: float
    """Infinite if the answer is unknown, since the operation may still take effect at any time."""
    client: str = ""


class Journal:
    """Appends to its own file; what was written survives the writer's death."""

    def __init__(self, folder: Path, client: str) -> None:
        self._file = os.open(folder / f"journal-{client}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = 0

    def begin(self, kind: str, study: str, arguments: tuple[Any, ...]) -> int:
        """Record that an operation begins; return its number."""
        self._count += 1
        self._write([self._count, "begin", time.monotonic(), kind, study, arguments])
        return self._count

    def end(self, number: int, answer: tuple[Any, ...]) -> None:
        self._write([number, "end", time.monotonic(), answer])

    def note(self, what: str) -> None:
        """Record an event that is no operation, e.g. an unexpected error."""
        self._write([0, "note", time.monotonic(), what])

    def _write(self, entry: list[Any]) -> None:
        os.write(self._file, f"{json.dumps(entry)}\n".encode())


def operations(folder: Path) -> list[Operation]:
    return sorted((each for path in folder.glob("journal-*.jsonl") for each in _of(path)), key=lambda op: op.begin_s)


def notes(folder: Path) -> list[tuple[float, str, str]]:
    """Return all events that are no operations: time, client, what."""
    found = []
    for path in folder.glob("journal-*.jsonl"):
        found += [(line[2], _client(path), line[3]) for line in _lines(path) if line[1] == "note"]
    return sorted(found)


def _of(path: Path) -> Iterator[Operation]:
    lines = _lines(path)
    ends = {line[0]: line for line in lines if line[1] == "end"}
    for number, what, begin_s, *rest in lines:
        if what == "begin":
            _, _, end_s, answer = ends.get(number, (0, "", math.inf, None))
            kind, study, arguments = rest
            yield Operation(kind, study, _frozen(arguments), _frozen(answer), begin_s, end_s, _client(path))


def _client(path: Path) -> str:
    return path.stem.removeprefix("journal-")


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
