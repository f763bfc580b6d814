"""Find an order of a history's operations that explains every answer.

After Wing and Gong, Testing and Verifying Concurrent Objects (1993), with the memory of Lowe, Testing for
Linearizability (2017): a set of operations that led to the same state once is not tried again.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tests.faults.harness.histories.journal import Operation

State = TypeVar("State", bound=Hashable)
MAX_STEPS: Final = 1_000_000


@dataclass(frozen=True)
class Verdict:
    """Whether a history can be explained, and how far the best order got."""

    complaint: str
    """`""` if some order explains all answers."""
    num_steps: int


def explain(
    history: Sequence[Operation],
    initial: State,
    apply: Callable[[State, Operation], Iterable[State]],
    is_read: Callable[[Operation], bool],
) -> Verdict:
    """Search for an order that agrees with real time: what ended before another began comes first.

    Args:
        history: operations of one study. One whose answer is unknown may be left out, or take effect at any time from
            its begin to its end.
        initial: the state at the beginning.
        apply: the states that an operation with its answer may lead to, none if the answer is impossible; of an
            operation without an answer, those that it changes.

    """
    known = sorted((op for op in history if op.answer is not None), key=lambda op: op.begin_s)
    unknown = sorted((op for op in history if op.answer is None), key=lambda op: op.begin_s)
    ops = [*known, *unknown]
    goal = (1 << len(known)) - 1
    best, stuck = -1, ""
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State, int]] = [(0, initial, 0)]  # done, state, the first known operation that is not done
    steps = 0
    while stack:
        done, state, first = stack.pop()
        while first < len(known) and done >> first & 1:
            first += 1
        if done & goal == goal:
            return Verdict("", steps)
        if (done, state) in seen:
            continue
        seen.add((done, state))
        steps += 1
        if steps > MAX_STEPS:
            return Verdict(f"no order found in {MAX_STEPS:,} steps; {stuck}", steps)
        ready = _ready(ops, len(known), done, first)
        if (count := (done & goal).bit_count()) > best:
            waiting = [ops[index] for index in ready if index < len(known)]
            best, stuck = count, _described(waiting, state, best_of=len(known), count=count)
        after = {index: [*apply(state, ops[index])] for index in ready}
        # A read may come now: wherever else it could, the others are the same without it.
        if idle := [index for index, states in after.items() if states and is_read(ops[index])]:
            stack.append((done | sum(1 << index for index in idle), state, first))
            continue
        # The last one pushed is tried first: the known operation that ended first.
        ready.sort(key=lambda index: (ops[index].answer is None, ops[index].end_s), reverse=True)
        for index in ready:
            stack.extend((done | 1 << index, state, first) for state in after[index])
    return Verdict(f"no order explains the answers; {stuck}", steps)


def _ready(ops: Sequence[Operation], num_known: int, done: int, first: int) -> list[int]:
    """Return the operations that may come next: those that began before any other one that is left ended."""
    ready, limit_s = [], float("inf")
    for index in range(first, num_known):
        if ops[index].begin_s > limit_s:
            break
        if not done >> index & 1:
            ready.append(index)
            limit_s = min(limit_s, ops[index].end_s)
    ready = [index for index in ready if ops[index].begin_s <= limit_s]
    done_s = ops[first - 1].begin_s if first else 0.0
    for index in range(num_known, len(ops)):
        if ops[index].begin_s > limit_s:
            break
        if not done >> index & 1 and ops[index].end_s >= done_s:
            ready.append(index)
    return ready


def _described(waiting: Sequence[Operation], state: object, *, best_of: int, count: int) -> str:
    answers = "; ".join(
        f"{op.client} at {op.begin_s:.3f} {op.kind}{op.arguments} was answered {op.answer}" for op in waiting
    )
    return f"{count} of {best_of} answers are explained, then: {answers}; the study is then {state}"
