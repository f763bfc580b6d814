"""The figures of a run, as text, Markdown and JSON."""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Final

from benchmarks.figures import machine
from tests.faults.harness.fleet import Endings
from tests.faults.harness.invariants import Findings


def counted(meaning: str) -> Any:
    return field(default=0, metadata={"meaning": meaning})


@dataclass
class Figures:
    """The faults and results of one or more studies."""

    trials: int = counted("trials asked for")
    finished: int = counted("trials finished (complete + pruned)")
    overshoot: int = counted("finished trials too many or too few")
    stuck: int = counted("trials left RUNNING or WAITING")
    acknowledged: int = counted("acknowledged results")
    lost: int = counted("acknowledged results lost or changed")
    other_ends: int = counted("workers ended by anything but the harness")
    violations: int = counted("violated invariants, all kinds")
    kills: int = counted("workers killed (SIGKILL)")
    kills_at_points: int = counted("of these at a crash point between two statements")
    cuts: int = counted("connections cut")
    withheld: int = counted("of these between the end of a transaction and its answer")
    holes: int = counted("black-holed connections")
    crashes: int = counted("database crashes (immediate stop)")
    stops: int = counted("workers stopped past their lease (SIGSTOP, SIGCONT)")
    terminations: int = counted("workers terminated (SIGTERM)")
    taken_over: int = counted("take-overs of a trial")
    leases_lost: int = counted("leases lost by live workers, which noticed")
    repeated: int = counted("epochs computed again")
    failed: int = counted("failed trials")
    workers: int = counted("worker processes started")
    wall_s: float = counted("wall time, s")
    complaints: list[str] = field(default_factory=list)

    def add(self, other: "Figures") -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def take(self, findings: Findings, endings: Endings) -> None:
        """Add what was found in the database and how the workers exited."""
        self.finished = findings.num_complete + findings.num_pruned
        self.overshoot = self.finished - self.trials
        self.stuck, self.failed = findings.num_stuck, findings.num_failed
        self.acknowledged, self.lost = findings.num_acknowledged, findings.num_lost
        self.repeated, self.taken_over = findings.num_repeated, findings.num_taken_over
        self.workers, self.leases_lost = endings.num_started, endings.leases_lost.total()
        self.kills, self.kills_at_points = endings.num_killed, endings.num_killed_themselves
        self.terminations, self.other_ends = endings.num_terminated, len(endings.others)
        self.violations = len(findings.violations)
        self.complaints = [*findings.violations, *endings.others]


MEANINGS: Final = {one.name: one.metadata["meaning"] for one in fields(Figures) if one.metadata}


def table(columns: dict[str, Figures]) -> str:
    names = list(columns)
    width = max(map(len, MEANINGS.values()))
    lines = [f"| {'':<{width}} | {' | '.join(f'{name:>12}' for name in names)} |"]
    lines.append(f"|{'-' * (width + 2)}|{'|'.join('-' * 13 + ':' for _ in names)}|")
    for key, meaning in MEANINGS.items():
        numbers = [getattr(figures, key) for figures in columns.values()]
        lines.append(f"| {meaning:<{width}} | {' | '.join(f'{number:>12,.0f}' for number in numbers)} |")
    return "\n".join(lines)


def to_json(columns: dict[str, Figures], **others: Any) -> str:
    runs = {name: {key: getattr(figures, key) for key in MEANINGS} for name, figures in columns.items()}
    return json.dumps({"machine": machine(), **others, "runs": runs}, indent=2)
