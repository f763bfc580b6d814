"""Repeated simultaneous starts of several workers on an empty database."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.faults.harness.fleet import FaultyWorker
from tests.faults.harness.worker import Plan
from tests.support.postgres import Server

SETTINGS: Final[dict[str, Any]] = {"max_epochs": 2, "num_trials": 8, "sampler": "random", "pruner": "none"}
AHEAD_S: Final = 2.0


@dataclass
class Starts:
    """The outcome of several rounds."""

    rounds: int = 0
    workers: int = 0
    failed_rounds: int = 0
    """Rounds in which at least one worker failed."""
    failed_workers: int = 0


def start_at_once(
    server: Server, folder: Path, run: Callable[[dict[str, Any]], object], *, rounds: int, num_workers: int
) -> Starts:
    """Start workers at the same instant on an empty database, several times."""
    starts = Starts()
    for index in range(rounds):
        with server.database() as url:
            plan = Plan(folder / f"record-{index}", start_at_s=time.time() + AHEAD_S)
            settings = {**SETTINGS, "name": "starts"}
            workers = [FaultyWorker(url, folder, run=run, plan=plan, **settings) for _ in range(num_workers)]
            failed = sum(worker.wait() != 0 for worker in workers)
        starts.rounds += 1
        starts.workers += num_workers
        starts.failed_workers += failed
        starts.failed_rounds += failed > 0
    return starts
