"""Run clients under faults and check their history."""

import json
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import psycopg2

from tests.faults.harness.fleet import FaultyWorker
from tests.faults.harness.histories import client as clients
from tests.faults.harness.histories.journal import Operation, notes, operations
from tests.faults.harness.histories.model import DELETED, LOST, READS, Model, World, is_read
from tests.faults.harness.histories.search import explain
from tests.support.postgres import Server
from tests.support.reader import Reader
from tests.support.studies import BASELINE

WRITES: Final = ("ask", "report", "tell", "release", "claim")
STEPS_S: Final = (3600.0, -3600.0)
LAST_STEP_S: Final = -7200.0
"""Backwards, so that leases are in the future while the studies are finished."""


@dataclass(frozen=True)
class Mix:
    """The size of a history and its faults."""

    clients: int = 5
    operations: int = 400
    """In all, after which the clients are killed."""
    chance: float = 0.02
    """That a transaction goes wrong: that its client dies or its COMMIT fails, before or after it is stored."""
    kills: int = 4
    steps: int = 2
    """How often the database's clock is set by an hour, besides a last time at the end."""
    crashes: int = 0
    lease_s: float = 1.0
    seed: int = 0


@dataclass
class HistoryFigures:
    """What happened."""

    operations: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    deaths: int = 0
    lost: int = 0
    steps: int = 0
    """Of the search."""
    wall_s: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def add(self, other: "HistoryFigures") -> None:
        """Add another history's figures."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def __str__(self) -> str:
        counts = ", ".join(f"{kind} {count}" for kind, count in self.operations.most_common())
        return (
            f"{self.operations.total()} operations ({counts}), {self.unknown} without an answer, {self.lost} leases "
            f"lost, {self.deaths} clients killed, {self.steps} steps of the search, {self.wall_s:.0f} s, "
            f"{len(self.complaints)} complaints{''.join(f'{chr(10)}  {line}' for line in self.complaints)}"
        )


def run_history(url: str, folder: Path, mix: Mix, server: Server | None = None) -> HistoryFigures:
    """Let clients work on two studies of one database, under faults, and check what they were answered.

    With `server`, which is PostgreSQL's, commits are not durable by default and the server may crash.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(url, folder, mix, server)
    run.set_up()
    run.inject_faults()
    figures = check(url, folder, run.world())
    figures.complaints += run.complaints
    figures.wall_s = time.monotonic() - began
    return figures


def check(url: str, folder: Path, world: World) -> HistoryFigures:
    """Check the history of each study, and that its end is what the database holds."""
    figures, model = HistoryFigures(deaths=len(world.deaths)), Model(world)
    history = operations(folder)
    figures.operations.update(op.kind for op in history)
    figures.unknown = sum(op.answer is None for op in history)
    figures.lost = sum(op.answer == LOST for op in history)
    figures.complaints += [f"{who} at {when:.3f}: {what}" for when, who, what in notes(folder) if who != "harness"]
    for name in clients.NAMES:
        end = Operation("copy", name, (), read(url, name), time.monotonic(), time.monotonic(), "the database")
        own = [twin for op in history if op.study == name for twin in with_twin(op, world)]
        verdict = explain([*own, end], None, model.apply, is_read)
        figures.steps += verdict.num_steps
        figures.complaints += [f"study {name}: {verdict.complaint}"] if verdict.complaint else []
    return figures


def with_twin(op: Operation, world: World) -> list[Operation]:
    """Add to an operation a first try whose answer was lost with the connection.

    A write that finds its lease lost may have been stored before; so may a claim that took longer than a lease or
    during which the clock was set, and any change of a study that is found deleted.
    """
    is_long = op.end_s - op.begin_s > world.lease_s or any(op.begin_s <= at_s <= op.end_s for at_s in world.clock_steps)
    is_late = op.kind in WRITES and (op.answer == LOST or (op.kind == "claim" and is_long))
    is_late |= op.answer == DELETED and op.kind not in READS
    if op.answer is not None and is_late:
        return [op, op._replace(answer=None)]
    return [op]


class _Run:
    """The clients and their faults."""

    def __init__(self, url: str, folder: Path, mix: Mix, server: Server | None) -> None:
        self.url, self.folder, self.mix, self.server = url, folder, mix, server
        self.draws = random.Random(mix.seed)
        self.clock_steps: list[float] = []
        self.killed: list[str] = []
        self.complaints: list[str] = []
        self.workers: dict[FaultyWorker, str] = {}
        self.num_started = 0

    def set_up(self) -> None:
        """Let the database's clock be set, and commits that are not asked to be durable be lost in a crash."""
        self._clock_is(0.0, first=True)
        if self.server is not None:
            self.server.run("ALTER SYSTEM SET wal_writer_delay = '10s'")
            self.server.reload()

    def _clock_is(self, offset_s: float, *, first: bool = False) -> None:
        """Set the clock: of SQLite by a function of the clients, of PostgreSQL by one before its own."""
        self.clock_steps += [] if first else [time.monotonic()]
        temporary = self.folder / "clock.new"
        temporary.write_text(str(offset_s))
        temporary.rename(self.folder / "clock")
        if self.server is not None:
            connection = psycopg2.connect(self.url)
            with connection, connection.cursor() as cursor:
                if first:
                    cursor.execute(SET_UP.format(database=connection.info.dbname))
                cursor.execute("UPDATE stepped.clock SET off = make_interval(secs => %s)", (offset_s,))
            connection.close()
        self.clock_steps += [] if first else [time.monotonic()]

    def inject_faults(self) -> None:
        """Let the clients work under faults and kill all of them; then one more finishes the studies."""
        mix = self.mix
        for index in range(mix.clients):
            self._start("worker" if index else "operator")
        faults = {self._kill: mix.kills, self._step: mix.steps, self._crash: mix.crashes}
        when = [(self.draws.uniform(0.1, 0.9), fault) for fault, count in faults.items() for _ in range(count)]
        due = sorted(when, key=lambda pair: pair[0], reverse=True)
        while (part := len(operations(self.folder)) / mix.operations) < 1 and self.workers:
            time.sleep(0.02)
            for worker in [each for each in self.workers if each.process.exitcode is not None]:
                self._ended(worker)
                self._start(self.workers.pop(worker).partition("-")[0])
            while due and part >= due[-1][0]:
                due.pop()[1]()
        self._clock_is(LAST_STEP_S)
        for worker in self.workers:
            worker.process.kill()
            worker.wait()
            self._ended(worker)
        last = self._start("last", only_finish=True, chance=0.0)
        last.wait()
        self._ended(last)

    def _start(self, role: str, **changes: Any) -> FaultyWorker:
        index = self.num_started
        self.num_started += 1
        arguments = {
            "client": f"{role}-{index}",
            "seed": self.mix.seed * 1000 + index,
            "chance": self.mix.chance,
            "lease_s": self.mix.lease_s,
            "own_host": index % 2 == 0,
            "only_finish": False,
            **changes,
        }
        worker = FaultyWorker(self.url, self.folder, run=clients.run, **arguments)
        self.workers[worker] = arguments["client"]
        return worker

    def _ended(self, worker: FaultyWorker) -> None:
        code, client = worker.process.exitcode, self.workers[worker]
        if code == -signal.SIGKILL:
            self.killed.append(client)
        elif code:
            self.complaints.append(f"{client} ended with {code}: {worker.log().strip()[-2000:]}")

    def _kill(self) -> None:
        self.draws.choice([*self.workers]).send_signal(signal.SIGKILL)

    def _step(self) -> None:
        self._clock_is(self.draws.choice(STEPS_S))

    def _crash(self) -> None:
        assert self.server is not None
        self.server.stop()
        self.server.start()

    def world(self) -> World:
        """Return what the model must know."""
        last: dict[str, float] = {}
        for op in operations(self.folder):
            moment = op.begin_s if op.answer is None else op.end_s
            last[op.client] = max(last.get(op.client, 0.0), moment)
        return World(
            lease_s=self.mix.lease_s,
            target=clients.TARGET_OF_NEW,
            baseline=BASELINE[clients.X],
            max_attempts=clients.MAX_ATTEMPTS,
            deaths={client: last.get(client, 0.0) for client in self.killed},
            clock_steps=tuple(self.clock_steps),
        )


SET_UP: Final = """
    CREATE SCHEMA stepped;
    CREATE TABLE stepped.clock AS SELECT interval '0' AS off;
    CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        'SELECT pg_catalog.clock_timestamp() + off FROM stepped.clock';
    ALTER DATABASE {database} SET search_path = public, stepped, pg_catalog;
    ALTER DATABASE {database} SET synchronous_commit = off;
"""


def read(url: str, name: str) -> tuple[Any, ...]:
    """Read a study by plain SQL, in the words of the model."""
    reader = Reader(url)
    studies = reader.rows(f"SELECT study_id FROM studies WHERE study_name = '{name}'")
    if not studies:
        return DELETED
    of_study = f"WHERE study_id = {studies[0][0]}"
    [(target,)] = reader.rows(f"SELECT value_json FROM study_user_attributes {of_study} AND key = 'target'")
    trials = reader.rows(f"SELECT trial_id, state FROM trials {of_study} ORDER BY number")
    found = []
    for trial_id, state in trials:
        of_trial = f"WHERE trial_id = {trial_id}"
        fixed = reader.rows(f"SELECT value_json FROM trial_system_attributes {of_trial} AND key = 'fixed_params'")
        x = reader.rows(f"SELECT param_value FROM trial_params {of_trial} AND param_name = '{clients.X}'")
        steps = reader.rows(f"SELECT step, intermediate_value FROM trial_intermediate_values {of_trial} ORDER BY step")
        value = reader.rows(f"SELECT value FROM trial_values {of_trial}")
        parts = (json.loads(fixed[0][0])[clients.X] if fixed else None, _first(x), tuple(steps), _first(value))
        found.append((state, *parts))
    return int(target), tuple(found)


def _first(rows: list[tuple[Any, ...]]) -> Any:
    return rows[0][0] if rows else None
