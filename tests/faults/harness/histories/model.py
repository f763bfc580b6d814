"""A study as one sequential process would see it, written from its promises, not from its code."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from tests.faults.harness.histories.journal import Operation

FINISHED = ("COMPLETE", "PRUNED")
DELETED, LOST, FULL, REFUSED = ("deleted",), ("lost",), ("full",), ("refused",)
READS = ("copy", "migrate", "see")


class Trial(NamedTuple):
    state: str
    fixed: float | None = None
    """What it was enqueued with."""
    x: float | None = None
    steps: tuple[tuple[int, float], ...] = ()
    value: float | None = None
    token: str | None = None
    """Of the claim whose worker may write; None if the trial is not running or was released."""
    attempt: int = 0
    num_lost: int = 0
    """Attempts in a row, without the current one, that stored no epoch and were not released."""
    has_progress: bool = False
    """Whether the current attempt has stored an epoch."""
    alive_s: float = 0.0
    """When the last write of the current attempt began."""

    @property
    def contents(self) -> tuple[Any, ...]:
        return self.state, self.fixed, self.x, self.steps, self.value


class Study(NamedTuple):
    """One study, from its creation to its deletion."""

    uid: str
    """`""` as long as nobody has read it."""
    target: int
    trials: tuple[Trial, ...]
    changes: tuple[tuple[str, int | None, int], ...] = ()
    """Of the target: the token of each, the number of trials added, None where a total was given, and the target."""

    def num(self, *states: str) -> int:
        return sum(trial.state in states for trial in self.trials)

    @property
    def num_free(self) -> int:
        """How many more trials may start."""
        return self.target - self.num(*FINISHED, "RUNNING", "WAITING")

    @property
    def contents(self) -> tuple[Any, ...]:
        return self.target, tuple(trial.contents for trial in self.trials)

    def __str__(self) -> str:
        """Return a short form for complaints."""
        trials = "; ".join(
            f"{number} {trial.state} {trial.token or ''} attempt {trial.attempt} ({trial.num_lost} lost) "
            f"x {trial.x} fixed {trial.fixed} steps {len(trial.steps)} alive {trial.alive_s:.3f}"
            for number, trial in enumerate(self.trials)
            if trial.state in ("RUNNING", "WAITING")
        )
        return f"{self.uid}, {self.num(*FINISHED)} of {self.target} finished, {self.num('FAIL')} failed, {trials}"

    def change(self, number: int, **changes: Any) -> Self:
        trials = list(self.trials)
        trials[number] = trials[number]._replace(**changes)
        return self._replace(trials=tuple(trials))

    def set_target(self, target: int, token: str, added: int | None) -> Self:
        """Return the study with another target, and waiting trials beyond it cancelled."""
        changes = self.changes if target == self.target else (*self.changes, (token, added, target))
        return self._replace(target=target, changes=changes).cancel_excess()

    def cancel_excess(self) -> Self:
        """Cancel the last waiting trials beyond the target."""
        study = self
        waiting = [number for number, trial in enumerate(self.trials) if trial.state == "WAITING"]
        for number in waiting[::-1][: max(-self.num_free, 0)]:
            study = study.change(number, state="FAIL")
        return study


def is_read(op: Operation) -> bool:
    """Return whether an operation with its answer leaves every study as it is."""
    return op.kind in READS or op.answer in (DELETED, LOST, FULL, REFUSED)


State = Study | None
Outcome = tuple[tuple[Any, ...], State]
"""An answer, and the state after it."""


@dataclass(frozen=True)
class World:
    """What the clients of a history could not know."""

    lease_s: float
    target: int
    """Of a new study."""
    baseline: float
    max_attempts: int
    deaths: Mapping[str, float] = field(default_factory=dict)
    """When each client that was killed had not yet been, at the latest."""
    clock_steps: Sequence[float] = ()
    """When the database's clock was set."""


@dataclass(frozen=True)
class Model:
    """The answers that a study may give."""

    world: World

    def apply(self, state: State, op: Operation) -> Iterable[State]:
        """Return the states that an operation with its answer may lead to; without one, those that differ."""
        for answer, after in getattr(self, f"_{op.kind}")(state, op, *op.arguments):
            if op.answer is None:
                if after != state:
                    yield after
            elif answer == op.answer:
                yield after

    # A whole study

    def _define(self, state: State, _op: Operation) -> Iterator[Outcome]:
        yield (), state or Study("", self.world.target, (Trial("WAITING", fixed=self.world.baseline),))

    def _open(self, state: State, op: Operation) -> Iterator[Outcome]:
        if state is None:
            yield DELETED, state
        elif op.answer is not None and op.answer != DELETED:
            yield (state.uid or op.answer[0],), state._replace(uid=state.uid or op.answer[0])

    def _delete(self, state: State, _op: Operation, uid: str) -> Iterator[Outcome]:
        yield (DELETED, state) if _same(state, uid) is None else ((), None)

    def _copy(self, state: State, _op: Operation) -> Iterator[Outcome]:
        yield (DELETED if state is None else state.contents), state

    def _migrate(self, state: State, _op: Operation) -> Iterator[Outcome]:
        finished = [
            (n, trial.x, trial.value) for n, trial in enumerate((state or _NONE).trials) if trial.state in FINISHED
        ]
        yield (DELETED if state is None else tuple(finished)), state

    # Of one that a client has opened

    def _set_target(self, state: State, _op: Operation, uid: str, target: int) -> Iterator[Outcome]:
        if (study := _same(state, uid)) is None:
            yield DELETED, state
        elif target < study.num(*FINISHED, "RUNNING"):
            yield REFUSED, state
        else:
            yield (target,), study.set_target(target, "", None)

    def _add(self, state: State, _op: Operation, uid: str, count: int, token: str) -> Iterator[Outcome]:
        """Without a token it continues an addition of as many trials that is not finished, unless a total was given."""
        if (study := _same(state, uid)) is None:
            yield DELETED, state
            return
        for same, added, target in reversed(study.changes):
            if token and same == token:
                yield (target,), study
                return
            if not token and added is None:
                break
            if not token and added == count and study.num(*FINISHED) < target <= study.target:
                yield (study.target,), study.cancel_excess()
                return
        target = max(study.target, study.num(*FINISHED)) + count
        yield (target,), study.set_target(target, token, count)

    def _enqueue(self, state: State, _op: Operation, uid: str, x: float) -> Iterator[Outcome]:
        if (study := _same(state, uid)) is None:
            yield DELETED, state
        elif study.num_free <= 0:
            yield FULL, state
        else:
            trials = (*study.trials, Trial("WAITING", fixed=x))
            yield (len(study.trials),), study._replace(trials=trials)

    def _claim(self, state: State, op: Operation, uid: str, token: str) -> Iterator[Outcome]:
        """An orphan, else a waiting trial, else a new one; the first of each kind."""
        if (study := _same(state, uid)) is None:
            yield DELETED, state
            return
        orphans = [number for number, trial in enumerate(study.trials) if self._may_be_orphan(trial, op)]
        hopeless = [number for number in orphans if _num_lost(study.trials[number]) >= self.world.max_attempts]
        must_fail = [number for number in hopeless if study.trials[number].token is None]
        may_fail = [number for number in hopeless if number not in must_fail]
        for failing in _subsets(may_fail):
            after = study
            for number in (*must_fail, *failing):
                after = after.change(number, state="FAIL", token=None)
            left = [number for number in orphans if number not in hopeless]
            yield from self._claim_next(after.cancel_excess(), left, token, op.begin_s)

    def _claim_next(self, study: Study, orphans: list[int], token: str, now_s: float) -> Iterator[Outcome]:
        mine = {"state": "RUNNING", "token": token, "alive_s": now_s, "has_progress": False}
        for number in orphans:
            trial = study.trials[number]
            taken = study.change(number, attempt=trial.attempt + 1, num_lost=_num_lost(trial), **mine)
            yield (number, trial.attempt + 1), taken
            if trial.token is None:
                return  # nobody may leave out one that was released
        waiting = [number for number, trial in enumerate(study.trials) if trial.state == "WAITING"]
        if waiting:
            yield (waiting[0], 1), study.change(waiting[0], attempt=1, **mine)
        elif study.num_free > 0:
            started = study._replace(trials=(*study.trials, Trial(attempt=1, **mine)))
            yield (len(study.trials), 1), started
        else:
            yield ("none", study.num(*FINISHED), study.target, study.num("RUNNING")), study

    def _may_be_orphan(self, trial: Trial, op: Operation) -> bool:
        """Whether the worker of a running trial may look dead before the operation ends."""
        if trial.state != "RUNNING":
            return False
        owner = (trial.token or "").partition(":")[0]
        return (
            trial.token is None
            or op.end_s - trial.alive_s > self.world.lease_s
            or self.world.deaths.get(owner, op.end_s) < op.end_s
            or any(trial.alive_s <= step_s <= op.end_s for step_s in self.world.clock_steps)
        )

    # Of one trial

    def _see(self, state: State, _op: Operation, uid: str, number: int) -> Iterator[Outcome]:
        study = _same(state, uid)
        if study is None or number < len(study.trials):
            yield (DELETED if study is None else study.trials[number].contents), state

    def _ask(self, state: State, op: Operation, uid: str, number: int, token: str, x: float) -> Iterator[Outcome]:
        yield _write(state, op, uid, number, token, x=x)

    def _report(
        self, state: State, op: Operation, uid: str, number: int, token: str, epoch: int, value: float
    ) -> Iterator[Outcome]:
        study = _same(state, uid)
        steps = dict(study.trials[number].steps if study and number < len(study.trials) else ()) | {epoch: value}
        yield _write(state, op, uid, number, token, steps=tuple(sorted(steps.items())), has_progress=True)

    def _tell(
        self, state: State, op: Operation, uid: str, number: int, token: str, outcome: str, value: float
    ) -> Iterator[Outcome]:
        yield _write(state, op, uid, number, token, state=outcome, value=value, token=None)

    def _renew(self, state: State, op: Operation, uid: str, number: int, token: str) -> Iterator[Outcome]:
        yield _write(state, op, uid, number, token)

    def _release(self, state: State, op: Operation, uid: str, number: int, token: str) -> Iterator[Outcome]:
        yield _write(state, op, uid, number, token, token=None)


_NONE = Study("", 0, ())


def _same(state: State, uid: str) -> Study | None:
    """Return the study that a client has opened, None if it was deleted since."""
    return state if state is not None and state.uid == uid else None


def _num_lost(trial: Trial) -> int:
    """Return how many attempts were lost without progress if the current one is over now."""
    if trial.has_progress:
        return 0
    return trial.num_lost + (trial.token is not None)


def _write(state: State, op: Operation, uid: str, number: int, token: str, /, **changes: Any) -> Outcome:
    study = _same(state, uid)
    if study is None or number >= len(study.trials) or study.trials[number].token != token:
        return LOST, state
    return (), study.change(number, **{"alive_s": op.begin_s, **changes})


def _subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, size) for size in range(len(items) + 1))
