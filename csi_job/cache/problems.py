"""Images and rows that cannot be used: named in `problems.csv`, by pseudonyms everywhere else."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from csi_job.errors import DataError, Problem, advice, kind_of
from csi_job.files import csv_text, write_atomic
from csi_job.radiographs.identity import load_key, pseudonym
from csi_job.work_folder import WorkFolder


def write_problems(work: Path, problems: Iterable[Problem]) -> Path:
    """Write `problems.csv` and return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    rows = (
        (
            *(problem.row, problem.column, problem.file_id, problem.image),
            "; ".join(filter(None, (problem.what, problem.identifying))),
        )
        for problem in problems
    )
    path = WorkFolder(work).problems
    write_atomic(path, csv_text(("row", "column", "FileID", "image", "problem"), rows))
    return path


@contextmanager
def problems_listed(work: Path) -> Iterator[None]:
    """List the problems of a data error raised inside, and turn a failed write into a one-line error.

    Raises:
        DataError: the one raised inside, its problems with pseudonyms; or in place of an OSError raised inside.
        CsiJobError: the disk is full or failed.
    """
    try:
        yield
    except OSError as error:
        what = f"the cache cannot be written ({error.strerror})"
        got = str(error.filename or work)
        raise kind_of(error, DataError)(what, got=got, hint=advice(error, "choose another --work folder")) from None
    except DataError as error:
        if not error.problems:
            raise
        try:
            path = write_problems(work, error.problems)
            key = load_key(WorkFolder(work).identity_key)
        except (OSError, DataError):  # the folder cannot be written: the data error matters more
            raise error from None
        problems = [
            replace(problem, pseudonym=pseudonym(problem.file_id, key)) if problem.file_id else problem
            for problem in error.problems
        ]
        raise DataError(str(error), problems=problems, hint=f"those found are listed in {path}") from None
