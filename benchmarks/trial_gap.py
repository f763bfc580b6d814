"""What passes between two trials: from a trial's last validation to the first step of the next one.

Run: `python -m benchmarks.trial_gap [--arch NAME …] [--trials N]`. The trials are those of a real search of one epoch
each, on phantoms and SQLite; the first one's start, which imports and warms up, is left out.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import torch

from benchmarks.figures import machine, spread
from csi_job.phantoms.phantom import write_phantoms
from csi_job.pipeline import optimize_hyperparameters
from csi_job.trial.trainer import Trainer

NUM_PHANTOMS, SIDE_PX = 60, 64


class Gaps:
    """Seconds of the wall clock and of the training thread's processor time between trials."""

    def __init__(self) -> None:
        """Observe every trainer."""
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self._since: tuple[float, float] | None = None
        train, validate = Trainer.train_epoch, Trainer.validate

        def observed_train(trainer: Trainer, *arguments: Any) -> float:
            if self._since is not None:
                wall_s, cpu_s = self._since
                self.wall_s.append(time.perf_counter() - wall_s)
                self.cpu_s.append(time.thread_time() - cpu_s)
            return train(trainer, *arguments)

        def observed_validate(trainer: Trainer, *arguments: Any) -> Any:
            result = validate(trainer, *arguments)
            self._since = time.perf_counter(), time.thread_time()
            return result

        Trainer.train_epoch, Trainer.validate = observed_train, observed_validate  # type: ignore[method-assign]

    def clear(self) -> None:
        """Begin with another search."""
        self.wall_s.clear()
        self.cpu_s.clear()
        self._since = None


def main() -> None:
    """Print a line per architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["Custom_1", "ResNet50", "CheXNet"])
    parser.add_argument("--trials", type=int, default=11)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{machine('optuna', 'torch')}, {device}; {arguments.trials - 1} times; median [quartiles] (goal 0.3 s)")
    gaps = Gaps()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "data")
        write_phantoms(data, NUM_PHANTOMS, seed=0)
        for arch in arguments.arch:
            gaps.clear()
            optimize_hyperparameters(
                n_trials=arguments.trials,
                max_epochs=1,
                sampler="random",
                work=f"{temporary}/{arch}",
                radiographs={"labels": str(data / "labels.csv"), "images": str(data / "images")},
                cache={"image_size_px": SIDE_PX},
                space={"model_arch": {"value": arch}},
                baseline={"model_arch": arch},
            )
            print(
                f"{arch:<10} wall clock {spread(gaps.wall_s, ' s')}, processor {spread(gaps.cpu_s, ' s')}", flush=True
            )


if __name__ == "__main__":
    main()
