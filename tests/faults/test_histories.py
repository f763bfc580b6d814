"""What clients of two studies were answered under faults is what one sequential study would have answered."""

import math

import pytest

from tests.faults.harness.histories.journal import Journal, Operation, operations
from tests.faults.harness.histories.model import DELETED, FULL, LOST, REFUSED, Model, World, is_read
from tests.faults.harness.histories.run import Mix, run_history, with_twin
from tests.faults.harness.histories.search import explain

WORLD = World(lease_s=10.0, target=2, baseline=0.5, max_attempts=2, deaths={"dead": 20.0}, clock_steps=(100.0,))
WAITING_BASELINE = ("WAITING", 0.5, None, (), None)
BEGUN = [("define", (), ()), ("open", (), ("u",))]
CLAIM_A, CLAIM_B = ("claim", ("u", "a:1"), (0, 1)), ("claim", ("u", "b:1"), (1, 1))
REPORT = ("report", ("u", 0, "a:1", 0, 0.25), ())
TELL = ("tell", ("u", 0, "a:1", "COMPLETE", 0.75), ())


def complaint(*steps, world=WORLD):
    """What the checker says of operations that follow each other, a second apart, or at given times.

    Each step is kind, arguments and answer, and perhaps begin and end.
    """
    history = []
    for index, (kind, arguments, answer, *times) in enumerate([*BEGUN, *steps]):
        begin_s, end_s = times or (float(index), index + 0.5 if answer is not None else math.inf)
        history.append(Operation(kind, "red", arguments, answer, begin_s, end_s))
    history = [twin for op in history for twin in with_twin(op, world)]
    return explain(history, None, Model(world).apply, is_read).complaint


RIGHT = {
    "a trial from its claim to its result": [
        CLAIM_A, ("see", ("u", 0), ("RUNNING", 0.5, None, (), None)), ("ask", ("u", 0, "a:1", 0.5), ()), REPORT, TELL,
        ("copy", (), (2, (("COMPLETE", 0.5, 0.5, ((0, 0.25),), 0.75),))), ("migrate", (), ((0, 0.5, 0.75),)),
    ],
    "two claims of a study with room for two": [CLAIM_A, CLAIM_B, ("claim", ("u", "c:1"), ("none", 0, 2, 2))],
    "overlapping operations in either order": [
        ("set_target", ("u", 3), (3,), 2.0, 6.0), (*CLAIM_A, 2.5, 3.0), (*CLAIM_B, 3.5, 4.0),
        ("claim", ("u", "c:1"), (2, 1), 4.5, 5.0), ("delete", ("u",), (), 8.0, 9.2), ("copy", (), DELETED, 9.0, 9.5),
    ],
    "a total that is given before an addition, and set after it": [
        ("set_target", ("u", 2), (2,), 2.0, 5.0), ("add", ("u", 3, "t"), (5,), 3.0, 4.0),
        ("copy", (), (2, (WAITING_BASELINE,)), 6.0, 6.5),
    ],
    "a study that is created again while it is deleted": [
        ("define", (), (), 2.0, 5.0), ("delete", ("u",), (), 3.0, 4.0), ("open", (), ("v",), 6.0, 6.5),
    ],
    "an addition whose retry found the study deleted": [
        ("add", ("u", 3, "t"), DELETED, 2.0, 8.0), ("add", ("u", 1, "s"), (6,), 3.0, 4.0),
        ("delete", ("u",), (), 5.0, 6.0),
    ],
    "a claim without an answer that took effect": [
        ("claim", ("u", "a:1"), None), CLAIM_B, ("claim", ("u", "c:1"), ("none", 0, 2, 2)),
    ],
    "a claim whose first try another worker took over, as the clock was set": [
        ("claim", ("u", "a:1"), (1, 1), 99.0, 101.0), ("claim", ("u", "b:1"), (0, 2), 100.2, 100.5),
    ],
    "a claim without an answer that took none": [("claim", ("u", "a:1"), None), ("claim", ("u", "b:1"), (0, 1))],
    "a trial of a released lease": [
        CLAIM_A, ("release", ("u", 0, "a:1"), ()), ("claim", ("u", "b:1"), (0, 2)), (*REPORT[:2], LOST),
    ],
    "a trial of an old lease": [CLAIM_A, ("claim", ("u", "b:1"), (0, 2), 20.0, 20.5)],
    "a trial of a dead worker": [
        ("claim", ("u", "dead:1"), (0, 1), 19.0, 19.5), ("claim", ("u", "b:1"), (0, 2), 20.5, 21.0),
    ],
    "a trial whose lease a set clock may have ended": [
        ("claim", ("u", "a:1"), (0, 1), 99.0, 99.5), ("claim", ("u", "b:1"), (0, 2), 101.0, 101.5),
    ],
    "a trial that failed after two lost attempts": [
        CLAIM_A, ("claim", ("u", "b:1"), (0, 2), 20.0, 20.5), ("claim", ("u", "c:1"), (1, 1), 40.0, 40.5),
        ("see", ("u", 0), ("FAIL", 0.5, None, (), None), 41.0, 41.5),
    ],
    "an enqueued trial, and no room for a third": [
        ("enqueue", ("u", 0.7), (1,)), ("enqueue", ("u", 0.8), FULL), CLAIM_A, CLAIM_B,
        ("see", ("u", 1), ("RUNNING", 0.7, None, (), None)),
    ],
    "a waiting trial cancelled beyond a lower total": [
        ("enqueue", ("u", 0.7), (1,)), CLAIM_A, ("set_target", ("u", 1), (1,)), ("set_target", ("u", 0), REFUSED),
        ("see", ("u", 1), ("FAIL", 0.7, None, (), None)),
    ],
    "an addition that is repeated under its token": [
        ("add", ("u", 3, "t"), None), ("add", ("u", 3, "t"), (5,)), ("add", ("u", 1, "s"), (6,)),
    ],
    "an addition that is continued by the same command, and not after a total": [
        ("add", ("u", 3, ""), (5,)), ("add", ("u", 3, ""), (5,)), ("add", ("u", 2, ""), (7,)),
        ("add", ("u", 3, ""), (7,)), ("set_target", ("u", 6), (6,)), ("add", ("u", 3, ""), (9,)),
    ],
    "a study that is deleted and created again": [
        ("delete", ("u",), ()), ("claim", ("u", "a:1"), DELETED), BEGUN[0], ("open", (), ("v",)),
        (*CLAIM_A[:2], DELETED), ("delete", ("u",), DELETED), ("add", ("u", 1, "t"), DELETED),
        ("claim", ("v", "b:1"), (0, 1)),
    ],
}  # fmt: skip
WRONG = {
    "a lost result": [CLAIM_A, REPORT, ("see", ("u", 0), ("RUNNING", 0.5, None, (), None))],
    "a result without its parameters": [
        CLAIM_A, ("ask", ("u", 0, "a:1", 0.5), ()), TELL, ("copy", (), (2, (("COMPLETE", 0.5, None, (), 0.75),))),
    ],
    "a changed result": [CLAIM_A, TELL, ("see", ("u", 0), ("COMPLETE", 0.5, None, (), 0.5))],
    "one trial for two workers": [CLAIM_A, ("claim", ("u", "b:1"), (0, 1))],
    "a trial of a live worker": [CLAIM_A, ("claim", ("u", "b:1"), (0, 2))],
    "a write under a lost lease": [CLAIM_A, ("claim", ("u", "b:1"), (0, 2), 20.0, 20.5), (*REPORT, 30.0, 30.5)],
    "a lease lost for no reason": [CLAIM_A, (*REPORT[:2], LOST)],
    "a trial beyond the total": [CLAIM_A, CLAIM_B, ("claim", ("u", "c:1"), (2, 1))],
    "a trial too few": [CLAIM_A, ("claim", ("u", "c:1"), ("none", 0, 2, 1))],
    "a trial passed over": [CLAIM_A, ("release", ("u", 0, "a:1"), ()), CLAIM_B],
    "a trial that failed in spite of its epoch": [
        CLAIM_A, REPORT, ("claim", ("u", "b:1"), (0, 2), 20.0, 20.5), ("claim", ("u", "c:1"), (1, 1), 40.0, 40.5),
        ("see", ("u", 0), ("FAIL", 0.5, None, ((0, 0.25),), None), 41.0, 41.5),
    ],
    "an addition that happened twice": [("add", ("u", 3, "t"), None), ("add", ("u", 3, "t"), (8,))],
    "an addition that an interrupted command made again": [("add", ("u", 3, ""), (5,)), ("add", ("u", 3, ""), (8,))],
    "a released trial that a late renewal takes back": [
        CLAIM_A, ("release", ("u", 0, "a:1"), ()), ("renew", ("u", 0, "a:1"), ()),
    ],
    "an addition that another overwrote": [
        ("add", ("u", 3, "t"), (5,)), ("add", ("u", 1, "s"), (6,)), ("copy", (), (5, (WAITING_BASELINE,))),
    ],
    "a total below what runs": [CLAIM_A, CLAIM_B, ("set_target", ("u", 1), (1,))],
    "a trial enqueued where there is no room": [("enqueue", ("u", 0.7), (1,)), ("enqueue", ("u", 0.8), (2,))],
    "another's trial for one's own": [
        ("enqueue", ("u", 0.7), (1,)), CLAIM_A, CLAIM_B, ("see", ("u", 1), ("RUNNING", 0.8, None, (), None)),
    ],
    "a trial of the next study": [
        ("delete", ("u",), ()), BEGUN[0], ("open", (), ("v",)), ("claim", ("u", "a:1"), (0, 1)),
    ],
    "a study that outlives its deletion": [("delete", ("u",), ()), ("copy", (), (2, (WAITING_BASELINE,)))],
    "an answer that came before its reason": [CLAIM_B, CLAIM_A],
}  # fmt: skip


@pytest.mark.parametrize("steps", RIGHT.values(), ids=RIGHT)
def test_a_right_history_is_explained(steps):
    assert complaint(*steps) == ""


@pytest.mark.parametrize("steps", WRONG.values(), ids=WRONG)
def test_a_wrong_history_is_not(steps):
    assert "no order explains the answers" in complaint(*steps)


def test_a_long_history_of_many_clients_takes_seconds():
    """All additions of 8 clients overlap, and those of one are never answered."""
    steps = []
    for turn in range(60):
        for client in range(8):
            answer = (3 + 8 * turn + client,) if client else None
            steps.append(("add", ("u", 1, f"{client}-{turn}"), answer, 2.0 + turn, 2.9 + turn if client else math.inf))
    assert complaint(*steps) == ""


def test_a_journal_survives_the_death_of_its_writer(tmp_path):
    journal = Journal(tmp_path, "worker-1")
    journal.end(journal.begin("claim", "red", ("u", "t")), (0, 1))
    journal.begin("tell", "red", ("u", 0))
    with (tmp_path / "journal-worker-1.jsonl").open("a") as file:
        file.write("[3, ")
    first, second = operations(tmp_path)
    assert (first.kind, first.arguments, first.answer, first.client) == ("claim", ("u", "t"), (0, 1), "worker-1")
    assert first.begin_s <= first.end_s <= second.begin_s
    assert (second.answer, second.end_s) == (None, math.inf)


def test_two_studies_in_an_sqlite_file_are_what_their_clients_were_told(tmp_path):
    figures = run_history(f"sqlite:///{tmp_path}/studies.db", tmp_path / "record", Mix(seed=1))
    assert figures.complaints == []
    assert figures.operations.total() >= 300


def test_two_studies_on_a_crashing_server_are_what_their_clients_were_told(mortal, tmp_path):
    with mortal.database() as url:
        figures = run_history(url, tmp_path / "record", Mix(seed=1, crashes=1), mortal)
    assert figures.complaints == []
    assert figures.operations.total() >= 300
