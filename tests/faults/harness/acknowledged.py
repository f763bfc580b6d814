"""What the storage acknowledged to a worker, appended to a file after each call has returned."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Acknowledgements:
    """A file to which each acknowledged result is appended and flushed to disk."""

    def __init__(self, folder: Path) -> None:
        """Write into an existing folder, one file per process."""
        self._file = os.open(folder / f"acknowledged-{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *entry: Any) -> None:
        os.write(self._file, f"{json.dumps(entry)}\n".encode())
        os.fsync(self._file)


def acknowledged(folder: Path) -> Iterator[list[Any]]:
    """Return every acknowledged result: `["report", number, epoch, value]` and `["tell", number, outcome, value]`.

    The value is None where a worker pruned a trial that another one had trained.
    """
    for path in folder.glob("acknowledged-*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
