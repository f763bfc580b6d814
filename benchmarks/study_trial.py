"""What a trial costs the database and its worker, compared with stock Optuna on the same server.

Run: `python -m benchmarks.study_trial [--history N …] [--round-trip-ms MS …] [--trials N] [--rounds N]`

For each length of the history both studies are given the same finished trials (8 parameters, 20 epochs), then trials
are run in turn, a few of ours and a few of stock Optuna, with the same sampler (TPE) and pruner (median). `ask` is
everything from the end of one trial to the parameters of the next, `report` stores an epoch, `prune` decides whether
to continue, `tell` ends the trial; a cold load reads the history into a new process's storage. A round trip is added by
a proxy that holds back each request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution, distribution_to_json
from pydantic import SecretStr
from sqlalchemy.engine import Engine, make_url

from benchmarks.figures import interleaved, machine, spread, wall_s
from csi_job.errors import StopRequestedError
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.study.definition import Definition, define_study
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.trial.space import SearchSpace
from tests.support.postgres import Server, embedded_server
from tests.support.processes import FORKS
from tests.support.studies import counted

NUM_PARAMS, NUM_EPOCHS, NUM_ATTRIBUTES = 8, 20, 5
PHASES = ("ask", "report", "prune", "tell")
NAMES = [f"p{index}" for index in range(NUM_PARAMS)]
Times = dict[str, list[float]]


def suggest(trial: optuna.Trial) -> dict[str, float]:
    """Sample eight numbers."""
    return {name: trial.suggest_float(name, 0, 1) for name in NAMES}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, nargs="+", default=[100, 1000, 10_000], help="finished trials")
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=[0, 1], help="added to each statement")
    parser.add_argument("--trials", type=int, default=4, help="trials of each side in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in which the sides take turns")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(machine("optuna"))
    print(f"{arguments.rounds} rounds of {arguments.trials} trials a side; milliseconds, median [quartiles]")
    for num_trials in arguments.history:
        with embedded_server() as server, server.database() as url:
            measure(server, url, num_trials, arguments)


def measure(server: Server, url: str, num_trials: int, arguments: argparse.Namespace) -> None:
    """Print the tables of one length of the history."""
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as other_work:
        ours, stock = Ours(url, Path(work)), Stock(url)
        for side in (ours, stock):
            fill(side.engine, side.study_id, num_trials)
        print(f"\n{num_trials} finished trials")
        print_cold_load(ours, stock, arguments.rounds)
        for round_trip_ms in arguments.round_trip_ms:
            with delayed(server, url, round_trip_ms) as far:
                print(f"\n  round trip of a statement: {round_trip(far):.2f} ms")
                print_trials(Ours(far, Path(other_work)), Stock(far), arguments)


def print_cold_load(ours: Ours, stock: Stock, rounds: int) -> None:
    """Print how long a new storage takes to read all trials."""
    times = interleaved({"ours": ours.load, "stock": stock.load}, rounds, wall_ms)
    ratio = statistics.median(times["stock"]) / statistics.median(times["ours"])
    print(f"  cold load: ours {spread(times['ours'])}, stock {spread(times['stock'])}: {ratio:.1f} times faster")


def print_trials(ours: Ours, stock: Stock, arguments: argparse.Namespace) -> None:
    """Print what each phase of a trial takes, and the statements."""
    sides: tuple[Side, ...] = (ours, stock)
    for side in sides:
        side.run(1)  # reads the history and warms up; not counted
    times: tuple[Times, Times] = (defaultdict(list), defaultdict(list))
    num_statements = [0, 0]
    for number in range(arguments.rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            with counted(sides[place].engine) as statements:
                for phase, values in sides[place].run(arguments.trials).items():
                    times[place][phase] += values
            num_statements[place] += len(statements)
    num_trials = arguments.trials * arguments.rounds
    print(f"  {'':<8}{'ours':>26}{'stock':>26}   ours/stock")
    for phase in (*PHASES, "trial"):
        print_row(phase, times[0][phase], times[1][phase])
    each = [number / num_trials for number in num_statements]
    print(f"  {'statements per trial':<8}{each[0]:>16.1f}{each[1]:>26.1f}{each[0] / each[1]:>13.2f}")


def print_row(phase: str, ours: list[float], stock: list[float]) -> None:
    """Print one phase."""
    ratio = statistics.median(ours) / statistics.median(stock)
    print(f"  {phase:<8}{spread(ours):>26}{spread(stock):>26}{ratio:>13.2f}")


class Side(ABC):
    """A study, and how its trials are run."""

    storage: optuna.storages.RDBStorage
    study_id: int

    @property
    def engine(self) -> Engine:
        """Return the engine whose statements count."""
        return self.storage.engine

    def load(self) -> None:
        """Read all trials."""
        self.storage.get_all_trials(self.study_id, deepcopy=False)

    @abstractmethod
    def run(self, num_trials: int) -> Times:
        """Run trials and return the milliseconds of each phase."""


class Ours(Side):
    """A study of csi-job, run by its worker."""

    def __init__(self, url: str, work: Path) -> None:
        settings = StorageSettings(url=SecretStr(url), lease_s=3600)
        self.work, self.num_trials = work, 10**6
        self.storage: StudyStorage = open_storage(settings, work, create=True)
        self.settings = StudySettings(name="ours", num_trials=self.num_trials, max_epochs=NUM_EPOCHS)
        definition = Definition.of(self.settings, SearchSpace(), {}, cache_key="0" * 16)
        self.study = define_study(self.storage, definition)
        self.study_id = self.study._study_id

    def run(self, num_trials: int) -> Times:
        """Run trials and return the milliseconds of each phase."""
        times: Times = defaultdict(list)
        clock = Clock(times)
        left = num_trials

        def objective(running: RunningTrial[dict[str, float]]) -> list[float]:
            clock.lap("ask")
            for epoch in range(NUM_EPOCHS):
                running.report(epoch, value_at(epoch, running.number))
                clock.lap("report")
                with contextlib.suppress(optuna.TrialPruned):
                    running.end_if_behind()
                clock.lap("prune")
            return [running.params["p0"]]

        def on_finished(_: Any) -> None:
            nonlocal left
            clock.lap("tell")
            clock.trial_ended()
            left -= 1
            if not left:
                raise KeyboardInterrupt

        options = WorkerOptions(on_trial_finished=on_finished, own_process=False)
        given: dict[str, Any] = {"suggest": suggest, "work": self.work}
        try:
            run_worker(self.study, objective, settings=self.settings, options=options, **given)
        except StopRequestedError:  # the worker's way to obey the interrupt above
            if left:
                raise
        return times


def stock_storage(url: str) -> optuna.storages.RDBStorage:
    """Open the storage of stock Optuna."""
    return optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg2://"))


def stock_study(storage: optuna.storages.RDBStorage, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """Make or open a study of stock Optuna, with a pruner that decides like ours."""
    return optuna.create_study(
        storage=storage,
        study_name="stock",
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(5, n_warmup_steps=1, n_min_trials=5),
        direction="maximize",
        load_if_exists=True,
    )


class Stock(Side):
    """A study of stock Optuna, run by `ask` and `tell`."""

    def __init__(self, url: str) -> None:
        sampler = optuna.samplers.TPESampler(
            seed=0, n_startup_trials=10, multivariate=True, group=True, constant_liar=True
        )
        self.storage = stock_storage(url)
        self.study = stock_study(self.storage, sampler)
        self.study_id = self.study._study_id

    def run(self, num_trials: int) -> Times:
        """Run trials and return the milliseconds of each phase."""
        times: Times = defaultdict(list)
        clock = Clock(times)
        for _ in range(num_trials):
            trial = self.study.ask()
            params = suggest(trial)
            clock.lap("ask")
            for epoch in range(NUM_EPOCHS):
                trial.report(value_at(epoch, trial.number), epoch)
                clock.lap("report")
                trial.should_prune()
                clock.lap("prune")
            self.study.tell(trial, params["p0"])
            clock.lap("tell")
            clock.trial_ended()
        return times


class Clock:
    """Measures what lies between one lap and the next."""

    def __init__(self, times: Times) -> None:
        self.times = times
        self.last = self.began = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self.times[phase].append(1000 * (now - self.last))
        self.last = now

    def trial_ended(self) -> None:
        """Add the time since the last end to the whole trials."""
        self.times["trial"].append(1000 * (self.last - self.began))
        self.began = self.last


def value_at(epoch: int, number: int) -> float:
    """Return a value that rises and differs from trial to trial."""
    return 0.5 + epoch / 100 + (number % 7) / 1000


def fill(engine: Engine, study_id: int, num_trials: int) -> None:
    """Add finished trials by plain SQL."""
    distribution = distribution_to_json(FloatDistribution(0, 1))
    number = f"(SELECT count(*) FROM trials WHERE study_id = {study_id}) + i"
    rows = f"{number}, {study_id}, 'COMPLETE', now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc'"
    children = {
        "trial_params (param_name, param_value, distribution_json": ("'p' || i, random(), %s", NUM_PARAMS),
        "trial_values (objective, value, value_type": ("0, random(), 'FINITE'", 1),
        "trial_intermediate_values (step, intermediate_value, intermediate_value_type": (
            "i, random() * 0.1 + i / 100.0, 'FINITE'",
            NUM_EPOCHS,
        ),
        "trial_user_attributes (key, value_json": ("'a' || i, '0.25'", NUM_ATTRIBUTES),
    }
    columns = "number, study_id, state, datetime_start, datetime_complete"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO trials ({columns}) SELECT {rows} FROM generate_series(0, {num_trials - 1}) i"
        )
        for table, (values, num_rows) in children.items():
            given = (distribution,) if "%s" in values else ()
            source = f"FROM trials, generate_series(0, {num_rows - 1}) i"
            finished = f"WHERE study_id = {study_id} AND state = 'COMPLETE'"
            connection.exec_driver_sql(
                f"INSERT INTO {table}, trial_id) SELECT {values}, trial_id {source} {finished}", given
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


@contextmanager
def delayed(server: Server, url: str, delay_ms: float) -> Iterator[str]:
    """Yield the database's URL through a proxy, in its own process, that delays each request."""
    if not delay_ms:
        yield url
        return
    listener = socket.create_server(("127.0.0.1", 0))
    upstream = f"{server.data}/.s.PGSQL.5432"
    proxy = FORKS.Process(target=_hold_back, args=(listener, upstream, delay_ms / 1000), daemon=True)
    proxy.start()
    query = {"sslmode": "disable", "gssencmode": "disable"}
    far = make_url(url).set(host="127.0.0.1", port=listener.getsockname()[1], query=query)
    listener.close()
    try:
        yield far.render_as_string(hide_password=False)
    finally:
        proxy.kill()
        proxy.join()


def _hold_back(listener: socket.socket, upstream: str, delay_s: float) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(upstream)
        await asyncio.gather(pump(reader, up_writer, delay_s), pump(up_reader, writer, 0))

    async def serve() -> None:
        await (await asyncio.start_server(accept, sock=listener)).serve_forever()

    asyncio.run(serve())


def round_trip(url: str, repeats: int = 50) -> float:
    """Return the median milliseconds of a statement that does nothing."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        times = [wall_ms(lambda: connection.exec_driver_sql("SELECT 1").scalar()) for _ in range(repeats)]
    engine.dispose()
    return statistics.median(times)


def wall_ms(call: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes."""
    return 1000 * wall_s(call)


if __name__ == "__main__":
    main()
