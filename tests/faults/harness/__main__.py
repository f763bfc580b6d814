"""`make faults`: the promises of a study, at full size."""

import argparse
import logging
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import machine
from csi_job.logs import progress, set_up_logging
from tests.faults.harness.chaos import Dose, chaos
from tests.faults.harness.failing_calls import CASES, Prepared, fail_each, preloaded
from tests.faults.harness.figures import Figures, table, to_json
from tests.faults.harness.histories.run import HistoryFigures, Mix, run_history
from tests.faults.harness.starts import Starts, start_at_once
from tests.faults.harness.stock import run_stock
from tests.faults.harness.sweep import seen_points, sweep
from tests.faults.harness.worker import run
from tests.support.postgres import Server, embedded_server

logger = logging.getLogger("csi_job.faults")
HOLE_S = 60.0  # longer than a worker waits for a silent peer
VARIED: Final[dict[str, Sequence[Any]]] = {
    "sampler": ("random", "tpe"),
    "pruner": ("none", "median", "asha", "hyperband", "successive_halving"),
    "max_epochs": (1, 2, 5, 9),
    "epoch_s": (0.0, 0.02),
    "down_s": (0.0, 2.0),
    "lease_s": (1.0, 3.0, 6.0),
}
"""What differs between the studies of `chaos`."""
SMALL = Dose(trials=150, workers=8, kills=80, cuts=0, crashes=4, stops=0, terminations=0)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults FAULTS_ARGS=", description=__doc__)
    for name, size, meaning in (
        ("trials", 10_000, "dummy trials in all"),
        ("studies", 20, "studies that share them, in sequence"),
        ("workers", 16, "workers per study"),
        ("kills", 6_200, "SIGKILLs to send; some hit a worker that is just exiting"),
        ("cuts", 5_200, "connections cut"),
        ("crashes", 210, "database crashes"),
        ("stops", 60, "workers suspended beyond their lease"),
        ("terminations", 200, "workers ended by SIGTERM"),
        ("holes", 20, "black-holed connections"),
        ("starts", 20, "simultaneous starts on an empty database"),
        ("histories", 20, "histories of two studies, on each database"),
        ("calls", 0, "calls of each command that fail once, 0 for all"),
        ("seed", 1, "random seed"),
    ):
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{meaning} (default {size:,})")
    parser.add_argument(
        "--outages", type=int, nargs="*", default=[60, 900], help="seconds of long outages, one study each"
    )
    parts = ("chaos", "training", "outage", "points", "starts", "stock", "history", "calls")
    parser.add_argument("--only", choices=parts, action="append")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    return parser.parse_args()


class Session:
    def __init__(self, given: argparse.Namespace, server: Server, folder: Path) -> None:
        self.given, self.server, self.folder = given, server, folder
        self.columns: dict[str, Figures] = {}
        self.starts: dict[str, Starts] = {}
        self.histories: dict[str, HistoryFigures] = {}
        self.num_points = 0
        self.missed: list[str] = []
        self.complaints: list[str] = []

    def chaos(self) -> None:
        given, total = self.given, Figures()
        with progress("trials under faults", given.trials, "trials") as advance, self.server.database() as url:
            for index in range(given.studies):
                folder, seed = self.folder / f"chaos-{index}", given.seed * 1000 + index
                draws = random.Random(seed)
                dose = Dose(
                    workers=given.workers,
                    hole_s=HOLE_S,
                    holes_in_transactions=False,
                    **{name: draws.choice(values) for name, values in VARIED.items()},
                    **{
                        name: share(getattr(given, name), given.studies, index)
                        for name in ("trials", "kills", "cuts", "crashes", "stops", "terminations", "holes")
                    },
                )
                logger.info("study %d: %s", index + 1, dose)
                figures = chaos(self.server, url, folder, dose, seed=seed, name=f"chaos-{index}", advance=advance)
                total.add(figures)
                self.columns["all"] = total
                logger.info("study %d of %d\n%s", index + 1, given.studies, table({"this": figures, "so far": total}))
                self.save()

    def training(self) -> None:
        """Run a study that really trains; PyTorch is imported only here, since it makes forking expensive."""
        from tests.faults.harness.training import phantom_cache, run_training

        forkserver._forkserver._stop()  # the next one preloads the modules named now
        cache = phantom_cache(self.folder / "phantoms")
        dose = Dose(trials=40, workers=4, max_epochs=4, kills=40, cuts=40, crashes=8, stops=2, terminations=6)
        dose = replace(dose, run=run_training, cache=cache)
        with self.server.database() as url:
            self.columns["training"] = chaos(self.server, url, self.folder / "training", dose, seed=self.given.seed)

    def outage(self) -> None:
        """Run a study whose connections go silent within transactions, and studies with long outages."""
        dose = Dose(trials=60, kills=5, cuts=5, crashes=0, stops=0, terminations=0, holes=3, hole_s=120.0)
        with self.server.database() as url:
            self.columns["silent"] = chaos(self.server, url, self.folder / "silent", dose, seed=self.given.seed)
        for down_s in self.given.outages:
            dose = Dose(trials=100, kills=10, cuts=10, crashes=1, terminations=2, down_s=down_s)
            with self.server.database() as url:
                figures = chaos(self.server, url, self.folder / f"outage-{down_s}", dose, seed=self.given.seed)
            self.columns[f"{down_s} s outage"] = figures

    def points(self) -> None:
        with self.server.database() as url:
            seen = {point for point in seen_points(url, self.folder / "seen") if not point.startswith("start")}
            done = sweep(seen, url, self.folder, num_trials=60, num_studies=15)
        self.num_points, self.missed = len(seen), sorted(done.missed)
        self.complaints += [f"crash points: {complaint}" for complaint in done.complaints]

    def start(self) -> None:
        for name, what in (("ours", run), ("stock", run_stock)):
            folder = self.folder / f"starts-{name}"
            self.starts[name] = start_at_once(self.server, folder, what, rounds=self.given.starts, num_workers=8)

    def stock(self) -> None:
        for name, dose in (("ours, small", SMALL), ("stock", replace(SMALL, run=run_stock, replaces_others=True))):
            with self.server.database() as url:
                folder = self.folder / name.replace(", ", "-")
                self.columns[name] = chaos(self.server, url, folder, dose, seed=self.given.seed)

    def history(self) -> None:
        """Check what clients of two studies were answered, on both databases."""
        for name, crashes in (("SQLite", 0), ("PostgreSQL", 2)):
            total = self.histories[name] = HistoryFigures()
            for index in range(self.given.histories):
                mix = Mix(seed=self.given.seed * 1000 + index, crashes=crashes)
                folder = self.folder / f"history-{name}-{index}"
                if crashes:
                    with self.server.database() as url:
                        total.add(run_history(url, folder, mix, self.server))
                else:
                    total.add(run_history(f"sqlite:///{folder}.db", folder, mix))
                logger.info("%s, history %d of %d: %s", name, index + 1, self.given.histories, total)

    def calls(self) -> None:
        with preloaded():
            prepared = Prepared(self.folder / "calls")
            prepared.root.mkdir()
            for name, case in CASES.items():
                complaints = [*fail_each(prepared, case, random.Random(self.given.seed), self.given.calls or None)]
                logger.info("%s: %d complaints", name, len(complaints))
                self.complaints += [f"failing calls: {line}" for line in complaints]

    def save(self) -> None:
        if self.given.out is not None:
            starts = {name: asdict(one) for name, one in self.starts.items()}
            others = {"options": vars(self.given) | {"out": str(self.given.out)}, "starts": starts}
            others |= {"histories": {name: str(one) for name, one in self.histories.items()}}
            others |= {"points": self.num_points, "missed": self.missed, "complaints": self.complaints}
            text = to_json(self.columns, **others)
            self.given.out.write_text(text + "\n")

    @property
    def is_exact(self) -> bool:
        """Whether our workers kept every promise."""
        ours = [figures for name, figures in self.columns.items() if name != "stock"]
        parts = [*ours, *self.histories.values()]
        wrong = [*self.missed, *self.complaints, *(line for figures in parts for line in figures.complaints)]
        return not wrong and ("ours" not in self.starts or not self.starts["ours"].failed_rounds)


def share(total: int, parts: int, index: int) -> int:
    """Return one of several nearly equal parts of a number."""
    return total * (index + 1) // parts - total * index // parts


def main() -> int:
    given = options()
    set_up_logging("text")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that neither servers nor workers are left running
    logging.getLogger("csi_job").setLevel(logging.INFO)
    with embedded_server() as server, tempfile.TemporaryDirectory(prefix="faults-") as folder:
        session = Session(given, server, Path(folder))
        parts = {
            "points": session.points,
            "outage": session.outage,
            "starts": session.start,
            "stock": session.stock,
            "history": session.history,
            "calls": session.calls,
            "chaos": session.chaos,
            "training": session.training,
        }
        for name, part in parts.items():
            if not given.only or name in given.only:
                logger.info("%s", name)
                part()
                session.save()
    out = [machine("optuna"), table(session.columns) if session.columns else ""]
    out += [f"{session.num_points} crash points, missed: {session.missed or 'none'}"] if session.num_points else []
    out += [f"simultaneous starts, {name}: {one}" for name, one in session.starts.items()]
    out += [f"histories, {name}: {one}" for name, one in session.histories.items()]
    out += session.complaints
    out += [f"{name}: {line}" for name, figures in session.columns.items() for line in figures.complaints[:20]]
    sys.stdout.write("\n".join(out) + "\n")
    return 0 if session.is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
