"""Images and rows that cannot be used: listed with their names in `problems.csv`, told by pseudonyms elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from csi_job.errors import DataError, Problem
from csi_job.files import write_atomic
from csi_job.radiographs.identity import load_key, pseudonym
from csi_job.work_folder import WorkFolder

_PRIVATE_MODE = 0o600  # the names may be identities


def write_problems(work: Path, problems: Iterable[Problem]) -> Path:
    """Write the list into the work folder, readable by its owner only, and return its path.

    Raises:
        OSError: the folder cannot be written.

    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    writer.writerow(("row", "column", "FileID", "problem"))
    writer.writerows((problem.row, problem.column, problem.file_id, problem.what) for problem in problems)
    path = WorkFolder(work).problems
    write_atomic(path, text.getvalue(), mode=_PRIVATE_MODE)
    return path


@contextmanager
def problems_listed(work: Path) -> Iterator[None]:
    """List the problems of a data error before it goes on, and make one line of a failed write.

    Raises:
        DataError: as raised inside, its problems with pseudonyms; or for an OSError raised inside.

    """
    try:
        yield
    except OSError as error:
        what = f"the cache cannot be written ({error.strerror})"
        got = str(error.filename or work)
        raise DataError(what, got=got, hint="Free space, or choose another --work folder") from None
    except DataError as error:
        raise _listed(error, work) from None


def _listed(error: DataError, work: Path) -> DataError:
    if not error.problems:
        return error
    try:
        path = write_problems(work, error.problems)
        key = load_key(WorkFolder(work).identity_key)
    except (OSError, DataError):  # the folder cannot be written: what is wrong with the data still counts
        return error
    problems = [
        replace(problem, pseudonym=pseudonym(problem.file_id, key)) if problem.file_id else problem
        for problem in error.problems
    ]
    return DataError(str(error), problems=problems, hint=f"all are listed in {path}")
