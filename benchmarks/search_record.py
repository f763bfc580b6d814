"""Record full learning curves and what they cost, for `benchmarks.search_replay`.

Run: `OMP_NUM_THREADS=1 python -m benchmarks.search_record --work FOLDER [--labels TABLE --images FOLDER]
[--curves ARCH=N …] [--minutes M]`; it adds what the file lacks, so it can be interrupted, or run again for more curves.

Curves are of phantoms and of the given radiographs. Each has hyperparameters sampled at random from the default space
(but batches of 16 and 32 only, since the sets are small), its own seed, no pruning, and is trained by `train_model`.
There are fewer curves of large architectures, which take longer. Costs are seconds of the training thread's CPU time,
which other processes of the machine hardly change: of each epoch, of building the model (`start_s`), of writing a
checkpoint (`save_s`), and of building the model from one (`resume_s`). Waiting for a disk is left out.
"""

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import torch

from benchmarks.figures import machine
from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.settings import CacheSettings
from csi_job.errors import CheckpointWriteError, InfeasibleTrialError
from csi_job.phantoms.phantom import write_phantoms
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.study.sampling import derived_seed
from csi_job.trial.checkpoint import epoch_of, load_checkpoint, save_checkpoint, valid_checkpoints
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.schedule import EpochResult
from csi_job.trial.settings import TrialSettings
from csi_job.trial.space import SearchSpace
from csi_job.trial.train import train_model

CURVES = Path(__file__).parent / "data" / "search_curves.jsonl"
SIDE_PX, NUM_PHANTOMS, MAX_EPOCHS, SEED = 32, 120, 12, 42
BATCH_SIZES = (16, 32)
NUM_CURVES = ["Custom_1=119", "CheXNet=5", "ResNet50=2"]  # an epoch takes about 0.2, 1 and 2 s
SETTINGS = TrialSettings(device="cpu")


def main() -> None:
    """Record the curves that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for phantoms and caches")
    parser.add_argument("--labels", type=Path, help="label table of radiographs")
    parser.add_argument("--images", type=Path, help="their images")
    parser.add_argument("--curves", nargs="+", default=NUM_CURVES, help="curves of each architecture and data set")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no curve after this time")
    parser.add_argument("--out", type=Path, default=CURVES)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    end_s = time.monotonic() + 60 * arguments.minutes
    caches = open_caches(arguments.work, arguments.labels, arguments.images)
    begin(arguments.out, caches)
    missing = planned(arguments.curves, list(caches), arguments.out)
    warm_up(caches["phantoms"], {arch for _, arch, _ in missing})
    for done, (data, arch, number) in enumerate(missing):
        if time.monotonic() > end_s:
            return
        curve = {"data": data, "number": number, **record(caches[data], data, arch, number)}
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(curve, separators=(",", ":")) + "\n")
        print(f"{done + 1} of {len(missing)}: {summary(curve)}", flush=True)


def open_caches(work: Path, labels: Path | None, images: Path | None) -> dict[str, Cache]:
    """Return the caches of the data sets by name, built where they are missing; the radiographs only if given."""
    phantoms = work / "phantoms"
    if not (phantoms / "labels.csv").exists():
        write_phantoms(phantoms, NUM_PHANTOMS, SEED)
    sources = {"phantoms": (phantoms / "labels.csv", phantoms / "images")}
    if labels is not None and images is not None:
        sources["radiographs"] = labels, images
    settings = CacheSettings(image_size_px=SIDE_PX, num_workers=1)
    return {
        name: Cache.open(build_cache(RadiographsSettings(labels=table, images=folder), settings, work))
        for name, (table, folder) in sources.items()
    }


def begin(path: Path, caches: dict[str, Cache]) -> None:
    """Write the file's first line, unless there is one."""
    if path.exists():
        return
    header = {
        "machine": machine("torch"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "side_px": SIDE_PX,
        "max_epochs": MAX_EPOCHS,
        "train_and_validation_images": {name: [len(c.train), len(c.validation)] for name, c in caches.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(header) + "\n", encoding="utf-8")


def planned(num_curves: Sequence[str], data: Sequence[str], path: Path) -> list[tuple[str, str, int]]:
    """Return data set, architecture and number of the curves that the file lacks, the architectures evenly mixed."""
    curves = map(json.loads, path.read_text(encoding="utf-8").splitlines()[1:])
    recorded = {(curve["data"], curve["params"]["model_arch"], curve["number"]) for curve in curves}
    counts = {arch: int(count) for arch, _, count in (given.partition("=") for given in num_curves)}
    order = sorted((number / count, arch, number) for arch, count in counts.items() for number in range(count))
    wanted = [(name, arch, number) for _, arch, number in order for name in data]
    return [curve for curve in wanted if curve not in recorded]


def warm_up(cache: Cache, archs: set[str]) -> None:
    """Train each architecture for an epoch, since the first steps compile kernels."""
    for arch in sorted(archs):
        for batch_size in BATCH_SIZES:
            run(cache, Hyperparameters(model_arch=arch, batch_size=batch_size), 0, Curve(), max_epochs=1)


class Curve:
    """Hooks that note each epoch and the CPU seconds since the one before."""

    def __init__(self) -> None:
        self.val_f1: list[float] = []
        self.epoch_s: list[float] = []
        self.last_s = 0.0

    def batch_done(self) -> None:
        """Do nothing."""

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:
        """Note the epoch."""
        del checkpoint
        now_s = time.thread_time()
        self.val_f1.append(round(result.val_f1, 5))
        self.epoch_s.append(round(now_s - self.last_s, 4))
        self.last_s = now_s

    def checkpoint_failed(self, error: CheckpointWriteError) -> None:
        """Stop: there is no cost to note."""
        raise error


def record(cache: Cache, data: str, arch: str, number: int) -> dict[str, Any]:
    """Train one model to the end, and return its curve and costs."""
    seed = derived_seed(SEED + number, zlib.crc32(f"{data} {arch}".encode()))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    params = SearchSpace(model_arch={"choices": [arch]}, batch_size={"choices": BATCH_SIZES}).suggest(trial)
    curve = Curve()
    start_s = cpu_s(lambda: run(cache, params, seed, curve, max_epochs=0))
    resume_s = save_s = None
    with tempfile.TemporaryDirectory() as temporary:
        folder, is_infeasible = Path(temporary), False
        curve.last_s = time.thread_time() + start_s  # the model is built again, which is no part of the first epoch
        try:
            run(cache, params, seed, curve, checkpoint_folder=folder)
        except InfeasibleTrialError:
            is_infeasible = True
        for path in valid_checkpoints(folder)[:1]:
            epochs = epoch_of(path) + 1
            resume_s = cpu_s(lambda: run(cache, params, seed, Curve(), max_epochs=epochs, resume_from=path))  # noqa: B023
            state = load_checkpoint(path)
            save_s = cpu_s(lambda: save_checkpoint(folder, epochs, state))  # noqa: B023
    costs = {"start_s": start_s, "save_s": save_s, "resume_s": resume_s}
    values = {"val_f1": curve.val_f1, "epoch_s": curve.epoch_s, **costs, "infeasible": is_infeasible}
    return {"params": rounded(trial.params), **values}


def run(cache: Cache, params: Hyperparameters, seed: int, hooks: Curve, **options: Any) -> None:
    """Train on a cache."""
    options = {"max_epochs": MAX_EPOCHS, **options}
    train_model(cache.train, cache.validation, params, SETTINGS, seed=seed, hooks=hooks, **options)


def cpu_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this thread in a call."""
    began_s = time.thread_time()
    call()
    return round(time.thread_time() - began_s, 4)


def rounded(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with five significant digits, to keep the file small."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in params.items()}


def summary(curve: dict[str, Any]) -> str:
    """Return a curve in one line."""
    best = max(curve["val_f1"], default=float("nan"))
    epochs = f"{len(curve['val_f1'])} epochs, {sum(curve['epoch_s']):.1f} s"
    return f"{curve['data']} {curve['params']['model_arch']}, best {best:.3f}, {epochs}"


if __name__ == "__main__":
    main()
