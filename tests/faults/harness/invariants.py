"""The invariants of a finished study, checked by plain SQL that shares no code with the worker."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import mul
from pathlib import Path
from typing import Any

import psycopg2

from tests.faults.harness.acknowledged import acknowledged


@dataclass(frozen=True)
class Expected:
    """What a study should contain."""

    num_trials: int
    max_epochs: int
    max_losses: int
    """Kills, and leases lost by live workers."""
    epochs_per_loss: int = 1
    """Epochs that each may cost; real training writes checkpoints on a clock, so all that take less than a minute."""
    reduction_factor: int | None = None
    """Of successive halving from epoch 1 on, if trials pause."""


@dataclass(frozen=True)
class Findings:
    """What was found in a study."""

    violations: list[str]
    num_complete: int
    num_pruned: int
    num_failed: int
    num_stuck: int
    """Trials RUNNING or WAITING."""
    num_acknowledged: int
    num_lost: int
    """Acknowledged results that are missing or changed."""
    num_repeated: int
    """Epochs computed more than once."""
    num_taken_over: int


class StudyReader:
    """Reads one study."""

    def __init__(self, url: str, study: str) -> None:
        """Connect to the database directly, not through a proxy."""
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._study = study
        self.has_leases = self.query("SELECT to_regclass('csi_job_leases')") != [(None,)]

    def rows(self, columns: str, table: str = "", condition: str = "true") -> list[tuple[Any, ...]]:
        """Return columns of a study's trials `t`, joined with one of Optuna's tables of their parts, `p`."""
        join = f" JOIN {table} p ON p.trial_id = t.trial_id" if table else ""
        sql = (
            f"SELECT {columns} FROM trials t JOIN studies s ON s.study_id = t.study_id{join}"
            f" WHERE s.study_name = %s AND {condition} ORDER BY 1, 2"
        )
        return self.query(sql, (self._study,))

    def query(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of any query."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall()

    def close(self) -> None:
        self._connection.close()


def check_study(url: str, study: str, record: Path, expected: Expected) -> Findings:
    """List all violations in a finished study."""
    reader = StudyReader(url, study)
    states = Counter(state for _, state in reader.rows("t.number, t.state"))
    lost, num_acknowledged = _lost(reader, record)
    repeats = _repeats(record)
    violations = [
        *_miscounted(states, expected.num_trials),
        *_misnumbered(reader),
        *_wrong_curves(reader, expected.max_epochs),
        *_wrong_values(reader),
        *_wrong_rungs(reader, expected),
        *_stray_leases(reader),
        *lost,
        *_repeated_too_often(reader, repeats, expected),
    ]
    attempts = _attempts(reader)
    reader.close()
    return Findings(
        violations,
        num_complete=states["COMPLETE"],
        num_pruned=states["PRUNED"],
        num_failed=states["FAIL"],
        num_stuck=states["RUNNING"] + states["WAITING"],
        num_acknowledged=num_acknowledged,
        num_lost=len(lost),
        num_repeated=sum(repeats.values()),
        num_taken_over=sum(attempts.values()) - len(attempts),
    )


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
    numbers = [number for number, _ in reader.rows("t.number, t.trial_id")]
    if numbers != list(range(len(numbers))):
        twice = [number for number, count in Counter(numbers).items() if count > 1]
        yield f"the numbers of {len(numbers)} trials are not 0 to {len(numbers) - 1}; twice: {twice}"


def _curves(reader: StudyReader) -> dict[int, list[tuple[int, float]]]:
    curves: dict[int, list[tuple[int, float]]] = {}
    for number, step, value in reader.rows("t.number, p.step, p.intermediate_value", "trial_intermediate_values"):
        curves.setdefault(number, []).append((step, value))
    return curves


def _wrong_curves(reader: StudyReader, max_epochs: int) -> Iterator[str]:
    # Only the dummy objective's values follow from a parameter; real training searches the learning rate as well.
    is_real = reader.rows("t.number, p.param_name", "trial_params", "p.param_name = 'learning_rate'")
    xs = dict(reader.rows("t.number, p.param_value", "trial_params", "p.param_name = 'unknown_weight'"))
    curves = _curves(reader)
    for number, state in reader.rows("t.number, t.state", condition="t.state IN ('COMPLETE', 'PRUNED')"):
        curve = curves.get(number, [])
        if [step for step, _ in curve] != list(range(len(curve))) or not curve:
            yield f"trial {number} has the steps {[step for step, _ in curve]}"
        if state == "COMPLETE" and len(curve) != max_epochs:
            yield f"trial {number} is complete with {len(curve)} epochs of {max_epochs}"
        x = None if is_real else xs.get(number)
        if x is not None and any(abs(value - value_of(x, step)) > 1e-12 for step, value in curve):
            yield f"trial {number} has the values {curve}, which are not those of x = {x}"


def _wrong_values(reader: StudyReader) -> Iterator[str]:
    values = Counter(number for number, _ in reader.rows("t.number, p.value", "trial_values"))
    for number, _ in reader.rows("t.number, t.state", condition="t.state = 'COMPLETE'"):
        if values[number] != 1:
            yield f"trial {number} is complete with {values[number]} values"


def _wrong_rungs(reader: StudyReader, expected: Expected) -> Iterator[str]:
    """Whatever the order of the trials, the best of each rung went past it, and the pruned ones end at a rung."""
    if expected.reduction_factor is None:
        return
    curves, states = _curves(reader), dict(reader.rows("t.number, t.state"))
    ends = {number: len(curve) for number, curve in curves.items() if states[number] != "FAIL"}
    rungs = list(accumulate(repeat(expected.reduction_factor, expected.max_epochs), mul, initial=1))
    for rung in (rung for rung in rungs if rung < expected.max_epochs):
        best = {number: max(value for _, value in curves[number][:rung]) for number in ends if ends[number] >= rung}
        ranked = sorted(best, key=lambda number: (-best[number], number))
        for number in ranked[: max(len(ranked) // expected.reduction_factor, 1)]:
            if ends[number] == rung:
                yield f"trial {number} ended after epoch {rung}, although it is among the best of {len(ranked)} there"
    for number, end in ends.items():
        if states[number] == "PRUNED" and end not in rungs:
            yield f"trial {number} is pruned after epoch {end}, which is no rung"


def _stray_leases(reader: StudyReader) -> Iterator[str]:
    if not reader.has_leases:
        return
    sql = "SELECT l.trial_id FROM csi_job_leases l LEFT JOIN trials t ON t.trial_id = l.trial_id"
    for (trial_id,) in reader.query(f"{sql} WHERE t.trial_id IS NULL OR t.state IN ('RUNNING', 'WAITING')"):
        yield f"there is a lease of trial id {trial_id}, which is not finished or does not exist"


def _lost(reader: StudyReader, record: Path) -> tuple[list[str], int]:
    """Return the acknowledged results that the database lacks or has changed, and the number of all."""
    curves = {number: dict(curve) for number, curve in _curves(reader).items()}
    states = dict(reader.rows("t.number, t.state"))
    values = dict(reader.rows("t.number, p.value", "trial_values"))
    lost, count = [], 0
    for kind, number, what, value in acknowledged(record):
        count += 1
        if kind == "report" and curves.get(number, {}).get(what) != value:
            lost.append(f"epoch {what} of trial {number} was acknowledged as {value}, it is {curves.get(number)}")
        if kind == "tell" and (states.get(number), values.get(number)) != (what.upper(), value):
            stored = states.get(number), values.get(number)
            lost.append(f"trial {number} was acknowledged as {what} with {value}, it is {stored}")
    return lost, count


def _repeats(record: Path) -> Counter[int]:
    """Return how many epochs of each trial were computed more than once."""
    computed = Counter((record / "computed.log").read_text().splitlines())
    repeats: Counter[int] = Counter()
    for line, count in computed.items():
        repeats[int(line.split()[0])] += count - 1
    return +repeats


def _attempts(reader: StudyReader) -> dict[int, int]:
    stored = dict(reader.rows("t.number, p.value_json", "trial_user_attributes", "p.key = 'attempt'"))
    # the lease also counts attempts that died before they stored their number
    leased = dict(reader.rows("t.number, p.attempt", "csi_job_leases")) if reader.has_leases else {}
    return {number: max(int(stored.get(number, 1)), leased.get(number, 1)) for number in {**stored, **leased}}


def _repeated_too_often(reader: StudyReader, repeats: Counter[int], expected: Expected) -> Iterator[str]:
    allowed = expected.max_losses * expected.epochs_per_loss
    if sum(repeats.values()) > allowed:
        yield f"{sum(repeats.values())} epochs were computed again, {allowed} are accounted for"
    attempts = _attempts(reader)
    for number, count in repeats.items():
        if count > (attempts.get(number, 1) - 1) * expected.epochs_per_loss:
            yield f"{count} epochs of trial {number} were computed again in {attempts.get(number, 1)} attempts"
