"""A study under all faults at once: killed, suspended and terminated workers, cut connections, database crashes."""

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from tests.faults.harness.crash_points import Death
from tests.faults.harness.figures import Figures
from tests.faults.harness.fleet import FaultyWorker, Fleet
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.proxy import Counts, running_proxy
from tests.faults.harness.worker import Plan
from tests.faults.harness.worker import run as run_dummies
from tests.support.postgres import Server

LOOK_EVERY_S = 0.25
SPREAD = 0.9  # faults are spread over this part of a study, so that all of them find it running


@dataclass(frozen=True)
class Dose:
    """The size of a study and the number of faults."""

    trials: int = 100
    workers: int = 8
    max_epochs: int = 2
    epoch_s: float = 0.0
    """Minimum seconds per epoch of a dummy trial."""
    kills: int = 40
    cuts: int = 40
    holes: int = 0
    crashes: int = 3
    stops: int = 2
    terminations: int = 4
    down_s: float = 0.0
    """Seconds until the database is restarted after each crash."""
    lease_s: float = 3.0
    outage_s: float = 1800.0
    hole_s: float = 20.0
    holes_in_transactions: bool = True
    connection: dict[str, str] = field(default_factory=dict)
    """Options of the driver."""
    run: Callable[[dict[str, Any]], object] = run_dummies
    """What a worker process does."""
    cache: Path | None = None
    """The cache to train on, if the workers train."""
    replaces_others: bool = False
    """Whether workers that crash are replaced too, and merely counted."""
    sampler: str = "random"
    pruner: str = "median"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of study and storage; a trial may be killed any number of times."""
        return {
            "num_trials": self.trials,
            "max_epochs": self.max_epochs,
            "max_attempts": 1000,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "min_resource": 1,
            "lease_s": self.lease_s,
            "outage_s": self.outage_s,
            "connect_s": self.outage_s,
        }


def chaos(
    server: Server,
    direct: str,
    folder: Path,
    dose: Dose,
    *,
    seed: int = 0,
    name: str = "chaos",
    advance: Callable[[int], Any] = lambda _: None,
) -> Figures:
    """Run a study under faults and return its figures.

    `direct` is the URL of one of the server's databases; `advance` is called with the number of trials that finished
    since its last call.
    """
    record = folder / "record"

    def start(url: str, index: int) -> FaultyWorker:
        death = Death(seed=seed * 100_003 + index)
        plan = Plan(record, death=death, own_host=index % 2 == 0, epoch_s=dose.epoch_s, cache=dose.cache)
        return FaultyWorker(url, folder, run=dose.run, plan=plan, name=name, seed=seed, **dose.settings)

    began = time.monotonic()
    socket = f"{server.data}/.s.PGSQL.5432"
    with running_proxy(socket, seed=seed, hole_s=dose.hole_s, anywhere=dose.holes_in_transactions) as proxy:
        through = proxy.url(direct, **dose.connection)
        fleet = Fleet(lambda index: start(through, index), dose.workers)
        fleet.replaces_others = dose.replaces_others
        injector = FaultInjector(fleet, server, proxy.counts, dose, random.Random(seed))
        try:
            injector.run(Progress(direct, name, dose.trials, advance))
        finally:
            fleet.end()
    endings = fleet.endings
    epochs_per_loss = 1 if dose.cache is None else dose.max_epochs
    factor = 2 if dose.pruner == "asha" else None
    has_outages = dose.cuts + dose.holes + dose.crashes > 0
    expected = Expected(dose.trials, dose.max_epochs, endings, has_outages, epochs_per_loss, factor)
    figures = Figures(trials=dose.trials)
    figures.take(check_study(direct, name, record, expected), endings)
    figures.cuts, figures.withheld = proxy.counts.cuts.value, proxy.counts.withheld.value
    figures.holes, figures.crashes, figures.stops = proxy.counts.holes.value, injector.num_crashes, injector.num_stops
    figures.wall_s = time.monotonic() - began
    return figures


class Progress:
    """The progress of a study according to the database, or its last answer during an outage."""

    def __init__(self, url: str, study: str, total: int, advance: Callable[[int], Any] = lambda _: None) -> None:
        self._url, self._study, self._total, self._advance = url, study, total, advance
        self._looked_at, self._count = 0.0, 0

    def part(self) -> float:
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            count = self._finished()
            self._looked_at = time.monotonic()
            self._advance(count - self._count)
            self._count = count
        return self._count / self._total

    def _finished(self) -> int:
        sql = (
            "SELECT count(*) FROM trials t JOIN studies s ON s.study_id = t.study_id"
            " WHERE s.study_name = %s AND (t.state IN ('COMPLETE', 'PRUNED') OR EXISTS (SELECT 1 FROM"
            " trial_user_attributes p WHERE p.trial_id = t.trial_id AND p.key = 'paused'))"
        )
        try:
            connection = psycopg2.connect(self._url)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(sql, (self._study,))
                    return int(cursor.fetchone()[0])
            finally:
                connection.close()
        except psycopg2.Error:  # unreachable, or without tables yet
            return self._count


class FaultInjector:
    """The faults of a study, spread randomly over its course."""

    def __init__(self, fleet: Fleet, server: Server, counts: Counts, dose: Dose, draws: random.Random) -> None:
        self.fleet, self.server, self.counts, self.dose, self.draws = fleet, server, counts, dose, draws
        self.num_crashes = self.num_stops = 0
        self._stopped: list[tuple[float, FaultyWorker]] = []
        self._crash: threading.Thread | None = None
        faults: dict[Callable[[], None], int] = {
            self._kill: dose.kills,
            self._cut: dose.cuts,
            self._black_hole: dose.holes,
            self._crash_database: dose.crashes,
            self._stop: dose.stops,
            self._terminate: dose.terminations,
        }
        when = [(draws.uniform(0, SPREAD), fault) for fault, count in faults.items() for _ in range(count)]
        self._due = sorted(when, key=lambda pair: pair[0], reverse=True)

    def run(self, progress: Progress) -> None:
        """Inject each fault when it is due, until all workers have exited by themselves."""
        while self.fleet.workers:
            self.fleet.collect(0.02)
            part = progress.part()
            if self._due and self._due[-1][0] <= part:
                self._due.pop()[1]()
            self._wake()
        if self._crash is not None:
            self._crash.join()
        progress.part()

    def _anyone(self) -> FaultyWorker | None:
        return self.draws.choice(self.fleet.workers) if self.fleet.workers else None

    def _kill(self) -> None:
        """Kill a worker now, or have it kill itself at one of the next crash points."""
        if (worker := self._anyone()) is None:
            return
        if self.draws.random() < 0.5:
            worker.send_signal(signal.SIGKILL)
        else:
            worker.kill_at_a_point()

    def _terminate(self) -> None:
        if (worker := self._anyone()) is not None:
            worker.send_signal(signal.SIGTERM)

    def _cut(self) -> None:
        self.counts.wanted_cuts.value += 1

    def _black_hole(self) -> None:
        self.counts.wanted_holes.value += 1

    def _stop(self) -> None:
        if (worker := self._anyone()) is not None:
            worker.send_signal(signal.SIGSTOP)
            self.num_stops += 1
            self._stopped.append((time.monotonic() + 1.5 * self.dose.lease_s, worker))

    def _wake(self) -> None:
        for pair in [pair for pair in self._stopped if pair[0] <= time.monotonic()]:
            pair[1].send_signal(signal.SIGCONT)
            self._stopped.remove(pair)

    def _crash_database(self) -> None:
        if self._crash is not None:
            self._crash.join()
        self.num_crashes += 1
        self._crash = threading.Thread(target=self._crash_and_restart)
        self._crash.start()

    def _crash_and_restart(self) -> None:
        with self.server.outage():
            time.sleep(self.dose.down_s)
