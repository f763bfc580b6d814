"""A study read by plain SQL or copied, and what must hold of a finished one; shares no code with what it checks."""

import contextlib
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2


class Reader:
    """Reads a database, SQLite or PostgreSQL, directly and not through a proxy."""

    def __init__(self, url: str) -> None:
        if url.startswith("sqlite:///"):
            self.connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)
        else:
            self.connection = psycopg2.connect(url)
            self.connection.autocommit = True

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        cursor = self.connection.cursor()
        cursor.execute(sql)
        return [tuple(row) for row in cursor.fetchall()]

    def is_locked(self) -> bool:
        """Whether SQLite's one lock is taken; PostgreSQL has none of the kind."""
        if not isinstance(self.connection, sqlite3.Connection):
            return False
        try:
            self.connection.execute("PRAGMA busy_timeout = 0")
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        finally:
            self.connection.execute("PRAGMA busy_timeout = 30000")
        self.connection.rollback()
        return False


class StudyReader(Reader):
    """Reads one study."""

    def __init__(self, url: str, study: str = "toy") -> None:
        super().__init__(url)
        self.study = study

    def trials(self, columns: str, table: str = "", condition: str = "1 = 1") -> list[tuple[Any, ...]]:
        """Return columns of the study's trials `t`, joined with one of Optuna's tables of their parts, `p`."""
        join = f" JOIN {table} p ON p.trial_id = t.trial_id" if table else ""
        return self.rows(
            f"SELECT {columns} FROM trials t JOIN studies s ON s.study_id = t.study_id{join}"
            f" WHERE s.study_name = '{self.study}' AND {condition} ORDER BY 1, 2"
        )

    def states(self) -> Counter[str]:
        return Counter(state for _, state in self.trials("t.number, t.state"))

    def curves(self) -> dict[int, list[tuple[int, float]]]:
        """Steps and values of each trial, by number."""
        curves: dict[int, list[tuple[int, float]]] = {}
        for number, step, value in self.trials("t.number, p.step, p.intermediate_value", "trial_intermediate_values"):
            curves.setdefault(number, []).append((step, value))
        return curves


def check_exact(url: str, num_trials: int, max_epochs: int) -> None:
    """Check the study `toy`, whatever was killed while it ran."""
    assert [*violations(StudyReader(url), num_trials, max_epochs)] == []


def violations(reader: StudyReader, num_trials: int, max_epochs: int) -> Iterator[str]:
    """Yield what is wrong in the trials of a finished study."""
    yield from _miscounted(reader.states(), num_trials)
    yield from _misnumbered(reader)
    yield from _wrong_results(reader, max_epochs)


def value_of(x: float, epoch: int) -> float:
    """Return the value of an epoch of the dummy objective."""
    return x * (1 - 0.5 ** (epoch + 1))


def _miscounted(states: Counter[str], target: int) -> Iterator[str]:
    if states["COMPLETE"] + states["PRUNED"] != target:
        yield f"{states['COMPLETE']} complete and {states['PRUNED']} pruned trials are not {target}"
    for state in ("RUNNING", "WAITING"):
        if states[state]:
            yield f"{states[state]} trials are {state} in the end"


def _misnumbered(reader: StudyReader) -> Iterator[str]:
    numbers = [number for number, _ in reader.trials("t.number, t.trial_id")]
    if numbers != list(range(len(numbers))):
        twice = [number for number, count in Counter(numbers).items() if count > 1]
        yield f"the numbers of {len(numbers)} trials are not 0 to {len(numbers) - 1}; twice: {twice}"


def _wrong_results(reader: StudyReader, max_epochs: int) -> Iterator[str]:
    # Only the dummy objective's values follow from a parameter; real training searches the learning rate as well.
    is_real = reader.trials("t.number, p.param_name", "trial_params", "p.param_name = 'learning_rate'")
    xs = dict(reader.trials("t.number, p.param_value", "trial_params", "p.param_name = 'unknown_weight'"))
    curves = reader.curves()
    values: dict[int, list[float]] = {}
    for number, value in reader.trials("t.number, p.value", "trial_values"):
        values.setdefault(number, []).append(value)
    for number, state in reader.trials("t.number, t.state", condition="t.state IN ('COMPLETE', 'PRUNED')"):
        curve = curves.get(number, [])
        if [step for step, _ in curve] != list(range(len(curve))) or not curve:
            yield f"trial {number} has the steps {[step for step, _ in curve]}"
        if state == "COMPLETE" and len(curve) != max_epochs:
            yield f"trial {number} is complete with {len(curve)} epochs of {max_epochs}"
        x = None if is_real else xs.get(number)
        result = values.get(number, [])
        if state == "COMPLETE" and (len(result) != 1 or result[0] != (result[0] if x is None else x)):
            yield f"trial {number} is complete with the values {result}, x is {x}"
        if x is not None and any(abs(value - value_of(x, step)) > 1e-12 for step, value in curve):
            yield f"trial {number} has the values {curve}, which are not those of x = {x}"


def copy_work(work: Path, to: Path) -> Path:
    """Copy a work folder, its database by SQLite, since other tests in this process may have it open."""
    shutil.copytree(work, to, ignore=shutil.ignore_patterns("studies.db*"))
    with (
        contextlib.closing(sqlite3.connect(work / "studies.db")) as source,
        contextlib.closing(sqlite3.connect(to / "studies.db")) as target,
    ):
        source.backup(target)
    return to
