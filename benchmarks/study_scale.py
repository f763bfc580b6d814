"""How many trials per second many workers get from one study, compared with stock Optuna's `study.optimize`.

Run: `python -m benchmarks.study_scale [--workers N …] [--trials N] [--seconds S …] [--sqlite]`

Workers are processes forked from a warm parent, which begin together once all are connected; the sampler is random,
so that the storage is what is measured. Stock Optuna is stopped by its `MaxTrialsCallback`, and counts as it counts:
trials beyond the total are counted. A worker runs the same trial on both sides: 8 parameters, 2 epochs that are
reported and compared, and a sleep.
"""

import argparse
import contextlib
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import optuna
import psycopg2  # type: ignore[import-untyped]
from optuna.samplers import RandomSampler
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from pydantic import SecretStr

from benchmarks.figures import machine
from benchmarks.study_trial import stock_storage, stock_study, suggest, value_at
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.study import worker
from csi_job.study.definition import Definition, define_study
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.trial.space import SearchSpace
from tests.support.postgres import Server, embedded_server
from tests.support.processes import FORKS

NUM_EPOCHS = 2
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
PODS = (256, 1000)
MAX_CONNECTIONS = 300  # a server's usual 100 are too few for 64 workers of stock Optuna
TRIAL_S = 600.0  # of the arithmetic: what a trial on a GPU takes


@dataclass(frozen=True)
class Run:
    """One measurement."""

    side: str
    seconds: float
    num_finished: int
    target: int
    ask_ms: list[float]
    """From the wish for a trial to its number, in each worker: our claim, stock Optuna's new trial."""
    num_connections: int
    num_ended: int
    """Workers that ended by an error."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64], help="worker processes")
    parser.add_argument("--trials", type=int, default=10, help="mean number of trials per worker")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 1.0], help="that a trial sleeps")
    parser.add_argument("--sqlite", action="store_true", help="SQLite instead of PostgreSQL, with 8 workers by default")
    arguments = parser.parse_args()
    if arguments.sqlite and arguments.workers == parser.get_default("workers"):
        arguments.workers, arguments.trials = [8], 15
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(machine("optuna"))
    print("trials beyond the total, and workers that ended by an error, are shown where there are any")
    with contextlib.nullcontext() if arguments.sqlite else embedded_server(max_connections=MAX_CONNECTIONS) as server:
        best = max(line for sleep_s in arguments.seconds for line in table(server, sleep_s, arguments))
    print_arithmetic(best)


def table(server: Server | None, sleep_s: float, arguments: argparse.Namespace) -> Iterator[float]:
    """Print the rows of one length of a trial, and yield our trials per second."""
    print(f"\ntrials of {sleep_s:g} s, {arguments.trials} per worker")
    header = ("workers", "side", "trials/s", "claim p50, ms", "p99, ms", "connections")
    print("".join(f"{name:>16}" for name in header))
    for num_workers in arguments.workers:
        for side in ("ours", "stock"):
            run = measure(server, side, num_workers, num_workers * arguments.trials, sleep_s)
            if run is None:
                print(f"{num_workers:>16}{side:>16}   did not begin: a worker ended before", flush=True)
                continue
            rate = run.num_finished / run.seconds
            p50, p99 = (np.percentile(run.ask_ms, place) for place in (50, 99))
            figures = (num_workers, side, f"{rate:.2f}", f"{p50:.1f}", f"{p99:.1f}", run.num_connections or "-")
            print("".join(f"{figure:>16}" for figure in figures) + remarks(run), flush=True)
            if side == "ours":
                yield rate


def remarks(run: Run) -> str:
    """Return what went wrong in a run."""
    parts = [f"{run.num_finished - run.target:+d} trials"] if run.num_finished != run.target else []
    parts += [f"{run.num_ended} workers ended by an error"] if run.num_ended else []
    return f"   ({', '.join(parts)})" if parts else ""


def print_arithmetic(rate: float) -> None:
    """Print what the best rate means for many pods: a computation, nothing that was measured."""
    print(f"\nBy arithmetic alone, from {rate:.1f} trials/s, with trials of {TRIAL_S / 60:.0f} minutes:")
    for num_pods in PODS:
        needed = num_pods / TRIAL_S
        share = f"{needed:.2f} trials/s, {needed / rate:.1%} of that"
        print(f"  {num_pods} pods ask for {share}, and hold {2 * num_pods} connections at most")


def measure(server: Server | None, side: str, num_workers: int, target: int, sleep_s: float) -> Run | None:
    """Run one study by some workers; None if they could not all begin."""
    with tempfile.TemporaryDirectory() as work, database(server, work) as url:
        if side == "ours":
            make_ours(url, Path(work), target)
        else:
            stock_study(stock_storage(url), RandomSampler())
        barrier, times = FORKS.Barrier(num_workers + 1), FORKS.SimpleQueue()
        arguments = (side, url, work, target, sleep_s, barrier, times)
        workers = [FORKS.Process(target=_work, args=arguments) for _ in range(num_workers)]
        for process in workers:
            process.start()
        try:
            barrier.wait(timeout=60)
        except BrokenBarrierError:  # a worker ended before the start, e.g. for want of a connection
            for process in workers:
                process.kill()
            return None
        with watched(server) as connections:
            ask_ms = [value for _ in workers for value in times.get()]
            for process in workers:
                process.join()
        num_ended = sum(process.exitcode != 0 for process in workers)
        seconds, num_finished = finished(side, url)
        return Run(side, seconds, num_finished, target, ask_ms, max(connections, default=0), num_ended)


def make_ours(url: str, work: Path, target: int) -> optuna.Study:
    """Make or open our study."""
    settings = StudySettings(name="ours", num_trials=target, max_epochs=NUM_EPOCHS, sampler="random")
    storage = open_storage(StorageSettings(url=SecretStr(url)), work, create=True)
    return define_study(storage, Definition.of(settings, SearchSpace(), {}, cache_key="0" * 16))


def _work(side: str, url: str, work: str, target: int, sleep_s: float, barrier: Any, times: Any) -> None:
    """Be a worker."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ask_ms: list[float] = []
    try:
        {"ours": _work_on_ours, "stock": _work_on_stock}[side](url, Path(work), target, sleep_s, barrier, ask_ms)
    finally:
        times.put(ask_ms)


def _work_on_ours(url: str, work: Path, target: int, sleep_s: float, barrier: Any, ask_ms: list[float]) -> None:
    study = make_ours(url, work, target)
    claim = worker.claim_trial  # type: ignore[attr-defined]

    def timed_claim(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        outcome = claim(*arguments, **options)
        ask_ms.append(1000 * (time.perf_counter() - began))
        return outcome

    def objective(running: RunningTrial[dict[str, float]]) -> list[float]:
        for epoch in range(NUM_EPOCHS):
            time.sleep(sleep_s / NUM_EPOCHS)
            running.report(epoch, value_at(epoch, running.number))
            with contextlib.suppress(optuna.TrialPruned):
                running.end_if_behind()
        return [running.params["p0"]]

    worker.claim_trial = timed_claim  # type: ignore[attr-defined]
    settings = StudySettings(name="ours", num_trials=target, max_epochs=NUM_EPOCHS, sampler="random")
    barrier.wait()
    options = WorkerOptions(own_process=False)
    given = {"suggest": suggest, "work": work, "options": options}
    run_worker(study, objective, settings=settings, **given)


def _work_on_stock(url: str, _folder: Path, target: int, sleep_s: float, barrier: Any, ask_ms: list[float]) -> None:
    study = stock_study(stock_storage(url), RandomSampler())
    create = study._storage.create_new_trial

    def timed_create(*arguments: Any, **options: Any) -> int:
        began = time.perf_counter()
        trial_id: int = create(*arguments, **options)
        ask_ms.append(1000 * (time.perf_counter() - began))
        return trial_id

    def objective(trial: optuna.Trial) -> float:
        params = suggest(trial)
        for epoch in range(NUM_EPOCHS):
            time.sleep(sleep_s / NUM_EPOCHS)
            trial.report(value_at(epoch, trial.number), epoch)
            trial.should_prune()
        return params["p0"]

    study._storage.create_new_trial = timed_create  # type: ignore[method-assign]
    barrier.wait()
    study.optimize(objective, callbacks=[MaxTrialsCallback(target, states=FINISHED)])


def finished(side: str, url: str) -> tuple[float, int]:
    """Return the seconds from the first beginning to the last end of a trial, and how many have finished."""
    storage = stock_storage(url)
    trials = optuna.load_study(study_name=side, storage=storage).get_trials(deepcopy=False, states=FINISHED)
    storage.engine.dispose()
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(starts)).total_seconds(), len(trials)


@contextmanager
def database(server: Server | None, work: str) -> Iterator[str]:
    """Yield the URL of an empty database."""
    if server is None:
        yield f"sqlite:///{work}/studies.db"
        return
    with server.database() as url:
        yield url


@contextmanager
def watched(server: Server | None) -> Iterator[list[int]]:
    """Collect how many connections clients have, four times a second."""
    if server is None:
        yield []
        return
    counts: list[int] = []
    over = threading.Event()

    def watch() -> None:
        connection = psycopg2.connect(server.url)
        connection.autocommit = True
        cursor = connection.cursor()
        query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
        while not over.wait(0.25):
            cursor.execute(query)
            counts.append(cursor.fetchone()[0])
        connection.close()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield counts
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    main()
