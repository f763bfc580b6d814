"""The label table: which image belongs to which patient, and how its six zones were scored."""

import csv
import io
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Self

import numpy as np

from csi_job.errors import DataError, Problem, explain_os_errors
from csi_job.files import exists, is_file
from csi_job.radiographs.content import NO_TABLES, decoded_text
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.spreadsheet import (
    bare_name,
    clean_id,
    hides_rows,
    lost_digits,
    marks_missing,
    may_mean_unknown,
    merged_numbers,
    plain_id,
)
from csi_job.radiographs.zones import UNKNOWN, ZONES

SEPARATORS = (";", ",", "\t", "|")
SEPARATORS_TEXT = "semicolon, comma, tab or |"
FILE_COLUMN = "FileID"
PATIENT_COLUMN = "PatientID"
REQUIRED_COLUMNS = (FILE_COLUMN, *ZONES)
MAX_TABLE_BYTES = 1 << 30  # a table of ten million rows; more is no label table
NUM_COLUMNS_NAMED = 12

_SCORE = re.compile(r"([0-4])(?:[.,]0*)?")  # `2`, `2.0`, and `2,0` as European spreadsheets write it
_NUM_WORDS_NAMED = 10
_SHORTENED = "a spreadsheet dropped digits of this number: import the column as text"
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control characters, surrogates, line and paragraph separators
_LIKE_PATIENTS = re.compile(
    r"\s*(?:(?:pat(?:ient(?:en)?)?\.?|subject|person)[-_ ]*(?:id|no|nr|number|key|uid|name)?|pid|mrn)\.?\s*",
    re.IGNORECASE,
)
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[;,\t]*', re.IGNORECASE)  # first line, as Excel reads and writes it
_NUM_LINES_SEARCHED = 100  # for a header below titles


@dataclass(frozen=True)
class LabelTable:
    """The rows of a label table, N of them, in the table's order.

    `file_ids`, `patient_ids` and `rows` have length N; `rows` counts the table's lines from 1, the header included.
    Where the table has no PatientID column, `has_patients` is false and each image is its own patient; `like_patients`
    is a column that may be meant.
    `zones_NZ` is int8 `[N, 6]` with the scores 0-3 and 4 for unknown.
    """

    file_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    rows: tuple[int, ...]
    zones_NZ: np.ndarray  # noqa: N815 - a tensor carries its axes
    has_patients: bool
    like_patients: str = ""

    def __len__(self) -> int:
        """Return the number of rows N."""
        return len(self.file_ids)

    def sorted_by_file(self) -> Self:
        """Return the table with its rows in the order of their FileIDs."""
        order = sorted(range(len(self)), key=self.file_ids.__getitem__)
        return replace(
            self,
            file_ids=tuple(self.file_ids[index] for index in order),
            patient_ids=tuple(self.patient_ids[index] for index in order),
            rows=tuple(self.rows[index] for index in order),
            zones_NZ=self.zones_NZ[order],
        )

    def patients(self) -> tuple[list[str], np.ndarray]:
        """Return the patients, sorted, and the place of each image's patient among them, int64 `[N]`."""
        patients = sorted(set(self.patient_ids))
        places = {patient: place for place, patient in enumerate(patients)}
        return patients, np.fromiter(map(places.__getitem__, self.patient_ids), np.int64, len(self))

    def num_patients_alike(self) -> int:
        """Return how many patients differ from another only in case, spaces, leading zeros or invisible characters."""
        counts = Counter(map(plain_id, set(self.patient_ids) if self.has_patients else ()))
        return sum(count for count in counts.values() if count > 1)


def read_table(path: Path, settings: RadiographsSettings) -> LabelTable:
    """Read and check a label table of at least one row; its separator and encoding are detected.

    It has the columns FileID, the six zones, and possibly PatientID; others are ignored.

    Raises:
        DataError: the table cannot be read, has no rows, lacks a column, or holds wrong rows; all wrong rows are
            in its `problems`, with row and column.
    """
    text = _read_text(path)
    try:
        return _read_rows(text, settings.unknown_values)
    except DataError as error:
        error.args = (f"{path}: {error}",)
        raise


def _read_rows(text: str, unknown_values: tuple[str, ...]) -> LabelTable:
    table = _read_columns(_Lines(text), unknown_values)
    if table is None:
        raise _refusal(_find_problems(_Lines(text), unknown_values), unknown_values)
    if not len(table):
        raise DataError("the label table has a header but no rows")
    return table


def _read_columns(lines: "_Lines", unknown_values: tuple[str, ...]) -> LabelTable | None:
    """Read a table by columns; return None if it has a problem, which is found row by row."""
    has_patients = PATIENT_COLUMN in lines.columns
    names = (FILE_COLUMN, PATIENT_COLUMN if has_patients else FILE_COLUMN, *ZONES)
    wanted = itemgetter(*(lines.columns[name] for name in names))
    numbers, picked, last = [], [], 0
    for number, cells in lines:
        if len(cells) != lines.num_columns and lines.is_ragged(cells):
            return None
        if number - last > 1 and _hides_rows(cells, lines, unknown_values):
            return None
        last = number
        numbers.append(number)
        picked.append(wanted(cells))
    columns = list(zip(*picked, strict=True)) or [()] * len(names)
    file_ids = tuple(map(clean_id, columns[0]))
    patient_ids = tuple(map(clean_id, columns[1])) if has_patients else file_ids
    scores = {cell: _read_score(cell, unknown_values) for cell in set().union(*columns[2:])}
    if (
        None in scores.values()
        or not all(_are_sound(identifiers) for identifiers in (file_ids, patient_ids))
        or len(set(file_ids)) < len(file_ids)
        or (has_patients and any(_is_unknown_patient(patient_id, unknown_values) for patient_id in set(patient_ids)))
        or (has_patients and _merged_patients(list(zip(numbers, file_ids, patient_ids, strict=True))))
    ):
        return None
    zones_ZN = [np.fromiter(map(scores.__getitem__, column), np.int8, len(numbers)) for column in columns[2:]]
    zones_NZ = np.stack(zones_ZN, axis=1)
    return LabelTable(file_ids, patient_ids, tuple(numbers), zones_NZ, has_patients, lines.like_patients)


def _find_problems(lines: "_Lines", unknown_values: tuple[str, ...]) -> list[Problem]:
    problems: list[Problem] = []
    sound: list[tuple[int, str, str]] = []
    first_rows: dict[str, int] = {}
    for row_number, cells in lines:
        found = _row_problems(row_number, cells, lines, unknown_values)
        problems += found
        if found:
            continue
        file_id = clean_id(cells[lines.columns[FILE_COLUMN]])
        first = first_rows.setdefault(file_id, row_number)
        if first != row_number:
            what = f"duplicate FileID (first in row {first})"
            what += f"; {_SHORTENED}" if lost_digits(file_id) else ""
            problems.append(Problem(what, row=row_number, column=FILE_COLUMN, file_id=file_id))
        sound.append((row_number, file_id, clean_id(cells[lines.columns.get(PATIENT_COLUMN, 0)])))
    return problems + (_merged_patients(sound) if PATIENT_COLUMN in lines.columns else [])


def _merged_patients(rows: Sequence[tuple[int, str, str]]) -> list[Problem]:
    """Refuse numbers that lost digits and stand for several images, perhaps of several patients.

    `rows` are the number, FileID and PatientID of each.
    """
    merged = merged_numbers(patient_id for _, _, patient_id in rows)
    return [
        Problem(f"{_SHORTENED}, which may merge patients", row=number, column=PATIENT_COLUMN, file_id=file_id)
        for number, file_id, patient_id in rows
        if patient_id in merged
    ]


@dataclass(frozen=True)
class _WrongScore(Problem):
    cell: str = ""


def _refusal(problems: Sequence[Problem], unknown_values: Sequence[str]) -> DataError:
    what = f"the label table has {_counted(len(problems), 'problem')}"
    if not any(problem.column in ZONES for problem in problems):
        return DataError(what, problems=problems)
    allowed = f"scores 0 1 2 3, for unknown 4 or {', '.join(map(repr, unknown_values))} (radiographs.unknown_values)"
    cells = {problem.cell for problem in problems if isinstance(problem, _WrongScore)}
    likely = sorted(cell for cell in cells if may_mean_unknown(cell))[:_NUM_WORDS_NAMED]
    if not likely:
        return DataError(what, allowed=allowed, problems=problems)
    values = json.dumps([*unknown_values, *likely], ensure_ascii=False)
    words = ", ".join(map(repr, likely))
    hint = f"to read {words} as unknown, set radiographs: {{unknown_values: {values}}} in a --config file"
    return DataError(what, allowed=allowed, hint=hint, problems=problems)


class _Lines:
    """The cells of a table's lines, by the separator that the header shows."""

    def __init__(self, text: str) -> None:
        filled = (line for line in io.StringIO(text, newline="") if line.strip())
        header = next(filled, "")
        stated = _SEPARATOR_LINE.fullmatch(header.strip("\r\n "))
        if stated:
            header = next(filled, "")
        if not header:
            raise DataError("the label table is empty")
        separators = (stated[1], *SEPARATORS) if stated else SEPARATORS
        best = max(separators, key=lambda separator: _header_merit(header, separator))
        spaced = _header_merit(header, best)[:2] > _header_merit(header, best, spaced=False)[:2]  # e.g. `"a", "b"`
        self._reader = csv.reader(io.StringIO(text, newline=""), delimiter=best, skipinitialspace=spaced, strict=True)
        if stated:
            self._next_cells()
        header_cells = self._next_cells() or []
        self.separator, self.num_columns = best, len(header_cells)
        self.columns = _find_columns(header_cells, best)
        if not self.columns:  # perhaps no header at all: its cells may name patients, so none is shown
            found = f"{_counted(len(header_cells), 'cell')} when split at '{_separator_name(best)}'"
            what = f"the first line of the label table contains none of the required columns ({found})"
            line = _line_of_header(text)
            hint = f"the header seems to be line {line}: delete the lines above it"
            hint = hint if line else f"check the separator ({SEPARATORS_TEXT}) and the header"
            raise DataError(what, allowed=f"a header with {', '.join(REQUIRED_COLUMNS)}", hint=hint)
        self._num_needed = max(self.columns.values()) + 1
        self.like_patients = next(filter(_LIKE_PATIENTS.fullmatch, header_cells), "")

    def __iter__(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield each line's number and cells, blank lines left out."""
        while (cells := self._next_cells()) is not None:
            yield self._reader.line_num, cells

    def is_ragged(self, cells: Sequence[str]) -> bool:
        """Return whether a line lacks a column or has too many filled cells: some may be parts of others."""
        return len(cells) < self._num_needed or any(map(str.strip, cells[self.num_columns :]))

    def _next_cells(self) -> list[str] | None:
        try:
            for cells in self._reader:
                if any(map(str.strip, cells)):
                    return cells
        except csv.Error as error:
            raise DataError(f"line {self._reader.line_num} of the label table is malformed ({error})") from None
        return None


def _hides_rows(cells: Sequence[str], lines: _Lines, unknown_values: tuple[str, ...]) -> bool:
    places = [lines.columns[zone] for zone in ZONES]
    return hides_rows(cells, lines.separator, places, lambda cell: _read_score(cell, unknown_values) is not None)


def _row_problems(number: int, cells: Sequence[str], lines: _Lines, unknown_values: tuple[str, ...]) -> list[Problem]:
    if lines.is_ragged(cells):
        what = f"{_counted(len(cells), 'cell')}, the header has {lines.num_columns}"
        hint = f"; quote cells that contain '{_separator_name(lines.separator)}'" * (len(cells) > lines.num_columns)
        return [Problem(what + hint, row=number)]
    if _hides_rows(cells, lines, unknown_values):
        hint = "remove the quote, or the line breaks if it is all one comment"
        return [Problem(f"a cell that begins with a quote goes on over several rows; {hint}", row=number)]
    file_id = clean_id(cells[lines.columns[FILE_COLUMN]])
    named = "".join(character if character.isprintable() else "?" for character in file_id)
    found = {FILE_COLUMN: _id_problem(file_id)}
    if PATIENT_COLUMN in lines.columns:
        found[PATIENT_COLUMN] = _patient_problem(clean_id(cells[lines.columns[PATIENT_COLUMN]]), unknown_values)
    problems = [Problem(what, row=number, column=column, file_id=named) for column, what in found.items() if what]
    for zone in ZONES:
        cell = cells[lines.columns[zone]].strip()
        if _read_score(cell, unknown_values) is None:
            what = f"not a valid score: {_shown(cell)}"
            problems.append(_WrongScore(what, row=number, column=zone, file_id=named, cell=cell))
    return problems


@lru_cache(maxsize=1024)  # a table has many cells with scores, and few different ones
def _read_score(cell: str, unknown_values: tuple[str, ...]) -> int | None:
    text = cell.strip()
    if text.casefold() in _unknown_words(unknown_values):
        return UNKNOWN
    match = _SCORE.fullmatch(text)
    return int(match[1]) if match else None


@lru_cache
def _unknown_words(unknown_values: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word.strip().casefold() for word in unknown_values)


def _is_unknown_patient(identifier: str, unknown_values: tuple[str, ...]) -> bool:
    """Return whether a cell names no patient; numbers that mean unknown, such as 9, may be a patient's."""
    word = identifier.casefold()
    return (word in _unknown_words(unknown_values) and not word.isdecimal()) or marks_missing(word)


def _are_sound(identifiers: Sequence[str]) -> bool:
    text = "".join(identifiers)
    return all(identifiers) and (text.isprintable() or not any(map(_id_problem, set(text))))


def _patient_problem(identifier: str, unknown_values: tuple[str, ...]) -> str:
    if _is_unknown_patient(identifier, unknown_values) and identifier:
        return "unknown, but images of one patient must stay together; give each patient a name"
    return _id_problem(identifier)


def _id_problem(identifier: str) -> str:
    if not identifier:
        return "blank"
    has_controls = any(unicodedata.category(character) in _CONTROLS for character in identifier)
    return "control characters in the identifier" if has_controls else ""


def _find_columns(cells: Sequence[str], separator: str) -> dict[str, int]:
    """Return the place of each known column, compared without case; refuse missing and repeated ones.

    No place is returned where all required ones are missing.
    Where a required one is missing, all may have other marks between their words: `Right-Sup`, `right sup`, `File ID`.
    Where none is missing, `Patient ID` is no known column: a table that was read without it keeps its split.
    """
    names = (*REQUIRED_COLUMNS, PATIENT_COLUMN)
    exact, bare = [cell.strip().casefold() for cell in cells], list(map(bare_name, cells))
    words = {name: (exact, name.casefold()) for name in names if name.casefold() in exact}
    if not words.keys() >= {*REQUIRED_COLUMNS}:
        words |= {name: (bare, bare_name(name)) for name in names if name not in words and bare_name(name) in bare}
    known = {name: header.index(word) for name, (header, word) in words.items()}
    missing = [name for name in REQUIRED_COLUMNS if name not in known]
    if len(missing) == len(REQUIRED_COLUMNS):
        return {}
    if missing:
        shown = ", ".join(_shown(cell) for cell in cells[:NUM_COLUMNS_NAMED])
        raise DataError(
            f"the label table lacks the column{'s'[: len(missing) > 1]} {', '.join(missing)}",
            hint=f"name them so, one row per image; its columns, split at '{_separator_name(separator)}', are {shown}",
        )
    repeated = [name for name, (header, word) in words.items() if header.count(word) > 1]
    if repeated:
        what = f"the label table has the column {', '.join(repeated)} more than once"
        raise DataError(what, hint="rename or delete all but one")
    return known


def _line_of_header(text: str) -> int:
    """Return the number of the first line with all required columns, 0 if it is none of the first lines."""
    lines = enumerate(itertools.islice(io.StringIO(text, newline=""), _NUM_LINES_SEARCHED), start=1)
    num_columns = len(REQUIRED_COLUMNS)
    return next((n for n, line in lines for sep in SEPARATORS if _header_merit(line, sep)[0] == num_columns), 0)


def _header_merit(header: str, separator: str, *, spaced: bool = True) -> tuple[int, bool, int]:
    """Return how many required columns a separator shows, whether that of patients, then how many cells."""
    try:
        cells = next(csv.reader([header], delimiter=separator, skipinitialspace=spaced and separator != " "), [])
    except csv.Error:
        return (0, False, 0)
    names = {*map(bare_name, cells)}
    return (len(names & {*map(bare_name, REQUIRED_COLUMNS)}), bare_name(PATIENT_COLUMN) in names, len(cells))


def _read_text(path: Path) -> str:
    """Return the file's text; raise `DataError` if it cannot be read, is too large, or of another kind."""
    try:
        with explain_os_errors("the label table cannot be read", path, kind=DataError):
            if not is_file(path):
                what = "the label table is not a file" if exists(path) else "the label table does not exist"
                raise DataError(what, got=str(path))
            num_bytes = path.stat().st_size
            if num_bytes > MAX_TABLE_BYTES:
                raise DataError(f"the label table has {num_bytes} bytes", allowed=f"up to {MAX_TABLE_BYTES}")
            content = path.read_bytes()
    except ValueError:  # a null character in the path
        raise DataError("the label table is not a file", got=str(path)) from None
    for pattern, kind, hint in NO_TABLES:
        if pattern.match(content):
            raise DataError(f"the label table is {kind}", got=str(path), hint=hint)
    text = decoded_text(content)
    if text is not None:
        return text
    raise DataError("the label table is not text", got=str(path), hint="save it as CSV in UTF-8")


def _shown(cell: str) -> str:
    return repr(cell.strip()[:40])


def _separator_name(separator: str) -> str:
    return "tab" if separator == "\t" else separator


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"
