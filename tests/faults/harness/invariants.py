"""The invariants of a finished study, checked by plain SQL that shares no code with the worker."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import mul
from pathlib import Path

from tests.faults.harness.acknowledged import acknowledged
from tests.faults.harness.fleet import Endings
from tests.support.reader import StudyReader, violations


@dataclass(frozen=True)
class Expected:
    """What a study should contain."""

    num_trials: int
    max_epochs: int
    endings: Endings
    """Of the workers, some of which lost their trials."""
    has_outages: bool = False
    """Whether a worker that lost its trial while it was suspended may wake in an outage, through which it trains on."""
    epochs_per_loss: int = 1
    """Epochs that a kill may cost; real training writes checkpoints on a clock, so all that take less than a minute."""
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


def check_study(url: str, study: str, record: Path, expected: Expected) -> Findings:
    """List all violations in a finished study."""
    reader = StudyReader(url, study)
    states = reader.states()
    lost, num_acknowledged = _lost(reader, record)
    repeats = _repeats(record)
    found = [
        *violations(reader, expected.num_trials, expected.max_epochs),
        *_wrong_rungs(reader, expected),
        *_stray_leases(reader),
        *lost,
        *_repeated_too_often(reader, repeats, expected),
    ]
    attempts = _attempts(reader)
    reader.connection.close()
    return Findings(
        found,
        num_complete=states["COMPLETE"],
        num_pruned=states["PRUNED"],
        num_failed=states["FAIL"],
        num_stuck=states["RUNNING"] + states["WAITING"],
        num_acknowledged=num_acknowledged,
        num_lost=len(lost),
        num_repeated=sum(repeats.values()),
        num_taken_over=sum(attempts.values()) - len(attempts),
    )


def _wrong_rungs(reader: StudyReader, expected: Expected) -> Iterator[str]:
    """Whatever the order of the trials, the best of each rung went past it, and the pruned ones end at a rung."""
    if expected.reduction_factor is None:
        return
    curves, states = reader.curves(), dict(reader.trials("t.number, t.state"))
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


def _has_leases(reader: StudyReader) -> bool:
    return reader.rows("SELECT to_regclass('csi_job_leases')") != [(None,)]


def _stray_leases(reader: StudyReader) -> Iterator[str]:
    if not _has_leases(reader):
        return
    sql = "SELECT l.trial_id FROM csi_job_leases l LEFT JOIN trials t ON t.trial_id = l.trial_id"
    for (trial_id,) in reader.rows(f"{sql} WHERE t.trial_id IS NULL OR t.state IN ('RUNNING', 'WAITING')"):
        yield f"there is a lease of trial id {trial_id}, which is not finished or does not exist"


def _lost(reader: StudyReader, record: Path) -> tuple[list[str], int]:
    """Return the acknowledged results that the database lacks or has changed, and the number of all."""
    curves = {number: dict(curve) for number, curve in reader.curves().items()}
    states = dict(reader.trials("t.number, t.state"))
    values = dict(reader.trials("t.number, p.value", "trial_values"))
    lost, count = [], 0
    for kind, number, what, value in acknowledged(record):
        count += 1
        if kind == "report" and curves.get(number, {}).get(what) != value:
            lost.append(f"epoch {what} of trial {number} was acknowledged as {value}, it is {curves.get(number)}")
        stored = states.get(number), values.get(number) if value is not None else None
        if kind == "tell" and stored != (what.upper(), value):
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
    stored = dict(reader.trials("t.number, p.value_json", "trial_user_attributes", "p.key = 'attempt'"))
    # the lease also counts attempts that died before they stored their number
    leased = dict(reader.trials("t.number, p.attempt", "csi_job_leases")) if _has_leases(reader) else {}
    return {number: max(int(stored.get(number, 1)), leased.get(number, 1)) for number in {**stored, **leased}}


def _repeated_too_often(reader: StudyReader, repeats: Counter[int], expected: Expected) -> Iterator[str]:
    endings = expected.endings
    per_live_loss = expected.max_epochs if expected.has_outages else 1
    by_the_living = Counter({number: count * per_live_loss for number, count in endings.leases_lost.items()})
    num_losses = endings.num_killed + endings.num_not_released
    allowed = num_losses * expected.epochs_per_loss + by_the_living.total()
    if sum(repeats.values()) > allowed:
        yield f"{sum(repeats.values())} epochs were computed again, {allowed} are accounted for"
    attempts = _attempts(reader)
    for number, count in repeats.items():
        if count > (attempts.get(number, 1) - 1) * expected.epochs_per_loss + by_the_living[number]:
            yield f"{count} epochs of trial {number} were computed again in {attempts.get(number, 1)} attempts"
