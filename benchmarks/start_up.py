"""What commands cost before they work, in CPU seconds, beside what the libraries that they need take alone.

Run: `python -m benchmarks.start_up [--against CHECKOUT] [--repeats N]`. Each command is a new process on the same small
study, and all take turns, those of another checkout of this repository as well. Both are imported as source, with
bytecode, which a first round writes that is not counted. `hyperopt` and `train-optimized` are measured until the first
step of training would begin, on a finished cache.
"""

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.figures import machine, measure, spread
from benchmarks.predict import write_model
from benchmarks.study_long import Place, make_study
from csi_job.phantoms.phantom import write_phantoms

NUM_TRIALS = 6
RUN = ("-c", "from csi_job.cli import main; main()")
RUN_UNTIL_TRAINING = (
    "-c",
    """
import os
from csi_job.trial.trainer import Trainer
Trainer.train_epoch = lambda *_: os._exit(0)
from csi_job.cli import main
main()
""",
)
OPTIMIZER = "import torch; torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])"
SEARCH = "space: {model_arch: {value: Custom_1}}\ncache: {image_size_px: 64}\nfinal_model: {num_seeds: 100}\n"
HERE = Path(__file__).parents[1]


def main() -> None:
    """Print a line per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(machine("optuna", "torch"))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_study(NUM_TRIALS, Place(work, f"sqlite:///{work}/studies.db"))
        write_phantoms(work, 60, seed=0)
        write_model(work / "model.safetensors", "Custom_1")
        (work / "search.yaml").write_text(SEARCH)
        measure((*RUN, *search(work), "--n-trials", "1", "--max-epochs", "1"))
        measure_all(commands(work), arguments.repeats, arguments.against)


def search(work: Path) -> tuple[str, ...]:
    """Return the command of a search with a work folder of its own."""
    data = ("--labels", str(work / "labels.csv"), "--images", str(work / "images"))
    return "hyperopt", *data, "--config", str(work / "search.yaml"), "--work", str(work / "searched")


def commands(work: Path) -> dict[str, tuple[str, ...]]:
    """Return the arguments of the interpreter by what they run."""
    database, of_study = f"sqlite:///{work}/studies.db", ("--work", str(work))
    film = str(min((work / "images").iterdir()))
    return {
        "--help": (*RUN, "--help"),
        "config show": (*RUN, "config", "show"),
        "hyperopt, wrong path": (*RUN, "hyperopt", "--labels", "typo.csv", "--images", ".", *of_study),
        "study list": (*RUN, "study", "list", *of_study),
        "status": (*RUN, "status", *of_study),
        "optuna studies": ("-c", "from optuna.cli import main; main()", "studies", "--storage", database),
        "report": (*RUN, "report", *of_study),
        "import torch": ("-c", "import torch"),
        "an optimizer of PyTorch": ("-c", OPTIMIZER),
        "hyperopt, to training": (*RUN_UNTIL_TRAINING, *search(work), "--n-trials", "1000"),
        "train-optimized, to it": (*RUN_UNTIL_TRAINING, "train-optimized", *search(work)[1:]),
        "predict, one film": (*RUN, "predict", film, "--model-path", str(work / "model.safetensors")),
    }


def measure_all(runs: dict[str, tuple[str, ...]], repeats: int, other: Path | None) -> None:
    """Print the CPU seconds of each command, of both checkouts, and their ratio pair by pair."""
    checkouts = (HERE, other) if other else (HERE,)
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, arguments in runs.items():
            found = [measure(arguments, checkout)[1] for checkout in checkouts]
            seconds[name] += [found] if number else []
    for name, rounds in seconds.items():
        columns = [spread(column) for column in zip(*rounds, strict=True)]
        if other:
            columns.append(spread([here / there for here, there in rounds]))
        print(f"{name:<24}" + "".join(f"{column:<24}" for column in columns))


if __name__ == "__main__":
    main()
