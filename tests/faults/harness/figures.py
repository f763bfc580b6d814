"""The figures of a run, as text, Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Final

from benchmarks.figures import machine
from tests.faults.harness.fleet import Endings
from tests.faults.harness.invariants import Findings

MEANINGS: Final = {
    "trials": "trials asked for",
    "finished": "trials finished (complete + pruned)",
    "overshoot": "finished trials too many or too few",
    "stuck": "trials left RUNNING or WAITING",
    "acknowledged": "acknowledged results",
    "lost": "acknowledged results lost or changed",
    "other_ends": "workers ended by anything but the harness",
    "violations": "violated invariants, all kinds",
    "kills": "workers killed (SIGKILL)",
    "kills_at_points": "of these at a crash point between two statements",
    "cuts": "connections cut",
    "withheld": "of these between the end of a transaction and its answer",
    "holes": "black-holed connections",
    "crashes": "database crashes (immediate stop)",
    "stops": "workers stopped past their lease (SIGSTOP, SIGCONT)",
    "terminations": "workers terminated (SIGTERM)",
    "taken_over": "take-overs of a trial",
    "leases_lost": "leases lost by live workers, which noticed",
    "repeated": "epochs computed again",
    "failed": "failed trials",
    "workers": "worker processes started",
    "wall_s": "wall time, s",
}


@dataclass
class Figures:
    """The faults and results of one or more studies; `MEANINGS` explains each number."""

    trials: int = 0
    finished: int = 0
    overshoot: int = 0
    stuck: int = 0
    acknowledged: int = 0
    lost: int = 0
    other_ends: int = 0
    violations: int = 0
    kills: int = 0
    kills_at_points: int = 0
    cuts: int = 0
    withheld: int = 0
    holes: int = 0
    crashes: int = 0
    stops: int = 0
    terminations: int = 0
    taken_over: int = 0
    leases_lost: int = 0
    repeated: int = 0
    failed: int = 0
    workers: int = 0
    wall_s: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Add another study's figures."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def take(self, findings: Findings, endings: Endings) -> None:
        """Add what was found in the database and how the workers exited."""
        self.finished = findings.num_complete + findings.num_pruned
        self.overshoot = self.finished - self.trials
        self.stuck, self.failed = findings.num_stuck, findings.num_failed
        self.acknowledged, self.lost = findings.num_acknowledged, findings.num_lost
        self.repeated, self.taken_over = findings.num_repeated, findings.num_taken_over
        self.workers, self.leases_lost = endings.num_started, endings.num_leases_lost
        self.kills, self.kills_at_points = endings.num_killed, endings.num_killed_themselves
        self.terminations, self.other_ends = endings.num_terminated, len(endings.others)
        self.violations = len(findings.violations)
        self.complaints = [*findings.violations, *endings.others]


def table(columns: dict[str, Figures]) -> str:
    """Return figures side by side as a Markdown table."""
    names = list(columns)
    width = max(map(len, MEANINGS.values()))
    lines = [f"| {'':<{width}} | {' | '.join(f'{name:>12}' for name in names)} |"]
    lines.append(f"|{'-' * (width + 2)}|{'|'.join('-' * 13 + ':' for _ in names)}|")
    for key, meaning in MEANINGS.items():
        numbers = [getattr(figures, key) for figures in columns.values()]
        lines.append(f"| {meaning:<{width}} | {' | '.join(f'{number:>12,.0f}' for number in numbers)} |")
    return "\n".join(lines)


def to_json(columns: dict[str, Figures], **others: Any) -> str:
    """Return figures as JSON."""
    runs = {name: {key: getattr(figures, key) for key in MEANINGS} for name, figures in columns.items()}
    return json.dumps({"machine": machine(), **others, "runs": runs}, indent=2)
