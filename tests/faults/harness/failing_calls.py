"""Commands in which the N-th write, flush or rename fails once; see `failing_calls.c`."""

import ctypes
import errno
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from multiprocessing import forkserver
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from safetensors.numpy import load_file

from csi_job.files import digest, digest_file
from tests.conftest import missing_service
from tests.support.processes import Process, _run_command, preload

preload("tests.support.warm")
preload("tests.faults.harness.failing_calls")
ERRORS: Final = (errno.ENOSPC, errno.EIO)
TIMES: Final = re.compile(r"_s$|_at$|uid|created|exported|duration|start|complete|csi_job|files|sha256")
"""Names of what differs from run to run."""
MEMORIES: Final = {"digests.bin", ".digests.bin.lock", "requests.json"}
"""Files that save time and may be lost."""
VARIABLE: Final = {".lock", ".csv", ".md", ".pth", ".key", "split.npy"}
"""Files that hold times or random names beside what other files hold too."""
SETTINGS: Final = """
cache: {image_size_px: 32, num_workers: 1}
space: {model_arch: {value: Custom_1}, batch_size: {choices: [16, 32]}}
baseline: {model_arch: Custom_1}
study: {max_epochs: 1}
evaluation: {num_bootstrap: 100}
final_model: {num_candidates: 1, num_seeds: 1}
"""


@contextmanager
def preloaded() -> Iterator[None]:
    """Let all processes forked within the block be able to fail; skip with the reason if there is no C compiler."""
    source = Path(__file__).with_suffix(".c")
    library = Path(tempfile.gettempdir()) / f"failing-calls-{os.getpid()}.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        missing_service("no C compiler")
    subprocess.run([str(compiler), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    forkserver._forkserver._stop()  # the next one preloads the library
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]
        forkserver._forkserver._stop()
        library.unlink()


class FailingCommand(Process):
    """A command whose N-th call below its folder fails; 0: none."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], number: int, error: int) -> None:
        record = folder.with_name("record")
        shutil.rmtree(record, ignore_errors=True)
        record.mkdir()
        self.list, self.out, self.err = record / "calls", record / "out", record / "err"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        fault = (str(folder), str(self.list), number, error)
        super().__init__(_run_failing, fault, arguments, environment, str(self.out), str(self.err))

    def log(self) -> str:
        return self.err.read_text() if self.err.exists() else ""

    @property
    def calls(self) -> dict[int, str]:
        """The calls, each with its file, by number."""
        lines = self.list.read_text().splitlines() if self.list.exists() else []
        return {int(number): call for number, _, call in (line.partition(" ") for line in lines)}


def _run_failing(fault: tuple[str, str, int, int], *command: Any) -> None:
    folder, calls, number, error = fault
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    if library.fail_call(folder.encode(), calls.encode(), ctypes.c_long(number), error) != 0:
        message = "the calls cannot be listed"
        raise OSError(message)
    _run_command(*command)


@dataclass(frozen=True)
class Case:
    name: str
    before: tuple[str, ...]
    """The cases that make what it needs."""
    arguments: tuple[str, ...]
    """`AT` stands for the folder."""
    result: Callable[[Path], Any]
    """What it made, without times."""


def tree(*parts: str) -> Callable[[Path], Any]:
    """Return a function that reads all files of these parts of the folder."""

    def read(folder: Path) -> dict[str, str]:
        files = [path for part in parts for path in sorted((folder / part).rglob("*")) if path.is_file()]
        files = [path for path in files if path.name not in MEMORIES]
        return {str(path.relative_to(folder)): _content(path) for path in files}

    return read


def _content(path: Path) -> Any:
    """Return JSON without its times, else a digest; of pages, which hold times too, only that they are complete."""
    if path.suffix == ".html":
        return path.read_text().strip()[-8:]
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return {name: digest(tensor.tobytes()) for name, tensor in load_file(path).items()}
    return None if VARIABLE & {path.suffix, path.name} else digest_file(path)


def _without_times(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_without_times(part) for part in tree]
    if isinstance(tree, dict):
        return {name: _without_times(part) for name, part in tree.items() if not TIMES.search(name)}
    return tree


def trials(file: str = "work/studies.db") -> Callable[[Path], Any]:
    """Return a function that reads all trials of all studies."""

    def read(folder: Path) -> Any:
        query = (
            "SELECT study_name, number, state, value, (SELECT group_concat(param_name || param_value) FROM trial_params"
            " p WHERE p.trial_id = t.trial_id) FROM trials t JOIN studies USING (study_id)"
            " LEFT JOIN trial_values v ON v.trial_id = t.trial_id ORDER BY 1, 2"
        )
        with sqlite3.connect(folder / file) as database:
            return database.execute(query).fetchall()

    return read


def both(*results: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [result(folder) for result in results]


WORK: Final = ("--work", "AT/work", "--config", "AT/settings.yaml")
DATA: Final = ("--labels", "AT/data/labels.csv", "--images", "AT/data/images", *WORK)
NAME: Final = "csi_optimization"
CREATE: Final = ("phantoms", "cache build", "study create")
SEARCH: Final = ("phantoms", "cache build", "hyperopt")
TRAIN: Final = (*SEARCH, "train-optimized")
CASES: Final = {
    case.name: case
    for case in (
        Case("phantoms", (), ("phantoms", "AT/data", "--num-images", "24"), tree("data")),
        Case("config init", (), ("config", "init", "AT/new.yaml"), lambda folder: (folder / "new.yaml").read_text()),
        Case("cache build", ("phantoms",), ("cache", "build", *DATA), tree("work/cache")),
        Case("study create", SEARCH[:2], ("study", "create", *DATA), trials()),
        Case("hyperopt", SEARCH[:2], ("hyperopt", *DATA, "--n-trials", "2"), both(trials(), tree("work/models"))),
        Case(
            "study enqueue", (*SEARCH[:2], "study create"), ("study", "enqueue", NAME, "batch_size=32", *WORK), trials()
        ),
        Case("study copy", SEARCH, ("study", "copy", NAME, "--to", "sqlite:///AT/copy.db", *WORK), trials("copy.db")),
        Case("study export", SEARCH, ("study", "export", NAME, "AT/out", *WORK), tree("out")),
        Case("study migrate", SEARCH, ("study", "migrate", NAME, "new", *WORK), trials()),
        Case(
            "study delete", SEARCH, ("study", "delete", NAME, "--yes", *WORK), both(trials(), tree("work/checkpoints"))
        ),
        Case("report", SEARCH, ("report", *WORK), tree("work/models")),
        Case(
            "train-optimized",
            SEARCH,
            ("train-optimized", "--hyperparams", f"AT/work/models/hyperopt/{NAME}_best_params.json", *WORK),
            tree("work/models"),
        ),
        Case("eval", TRAIN, ("eval", *WORK), tree("work/models")),
        Case(
            "predict",
            TRAIN,
            ("predict", "AT/data/images", "--output", "AT/out.csv", *WORK),
            lambda folder: (folder / "out.csv").read_text(),
        ),
    )
}


@dataclass
class Prepared:
    """Folders in which cases begin, made by running the cases before them once."""

    root: Path
    made: dict[tuple[str, ...], Path] = field(default_factory=dict)

    def begin(self, case: Case) -> Path:
        return self._copy(self._after(case.before))

    def _copy(self, source: Path) -> Path:
        folder = self.root / "at"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        return folder

    def _after(self, names: tuple[str, ...]) -> Path:
        if names not in self.made:
            kept = self.root / f"after {names[-1] if names else 'nothing'}"
            if names:
                folder = self._copy(self._after(names[:-1]))
                code, err, _ = run(folder, CASES[names[-1]])
                assert code == 0, err
                shutil.copytree(folder, kept)
            else:
                kept.mkdir()
                (kept / "settings.yaml").write_text(SETTINGS)
            self.made[names] = kept
        return self.made[names]


def run(folder: Path, case: Case, number: int = 0, error: int = 0) -> tuple[int, str, FailingCommand]:
    """Run a command, and return its exit code, its standard error and itself."""
    arguments = tuple(word.replace("AT", str(folder)) for word in case.arguments)
    command = FailingCommand(folder, arguments, number, error)
    code = command.join(600)
    return code, command.log(), command


def fail_each(prepared: Prepared, case: Case, draws: random.Random, size: int | None = None) -> Iterator[str]:
    """Fail each distinct call of a command once, or `size` of them, then run it again; yield what was wrong."""
    folder = prepared.begin(case)
    code, err, command = run(folder, case)
    if code != 0:
        yield f"{case.name} fails by itself: {err}"
        return
    right, calls = case.result(folder), command.calls
    numbers = distinct(calls)
    for number in sorted(draws.sample(numbers, min(size or len(numbers), len(numbers)))):
        error = draws.choice(ERRORS)
        folder = prepared.begin(case)
        code, err, command = run(folder, case, number, error)
        where = f"{case.name}, call {number} of {len(calls)}, {errno.errorcode[error]} at {command.calls.get(number)}"
        lines = [line for line in err.splitlines() if line.startswith("csi-job:")]
        has_reason = os.strerror(error) in err or "studies.db" in where  # SQLite words it differently
        is_explained = len(lines) == 1 and lines == err.splitlines()[-1:] and has_reason
        is_explained &= ("check the disk" if error == errno.ENOSPC else "free up") not in err
        if "Traceback" in err or code not in {0, 1} or (code == 1 and not is_explained):
            yield f"{where}: exit {code}: {err[-1500:]}"
        if code != 0:
            code, err, _ = run(folder, case)
        if code != 0:
            yield f"{where}: the command again: exit {code}: {err[-600:]}"
        elif (result := case.result(folder)) != right:
            yield f"{where}: {_difference(result, right)}"


def distinct(calls: dict[int, str]) -> list[int]:
    """Return the first and the last of each run of equal calls, such as the pages of one transaction."""
    runs = [[number for number, _ in run] for _, run in groupby(sorted(calls.items()), key=itemgetter(1))]
    return sorted({number for run in runs for number in (run[0], run[-1])})


def _difference(result: Any, right: Any, path: str = "") -> str:
    if isinstance(result, dict) and isinstance(right, dict):
        pairs = [(name, result.get(name), right.get(name)) for name in {**result, **right}]
    elif isinstance(result, list) and isinstance(right, list):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip_longest(result, right))]
    else:
        return f"{path} is {result!s:.200}, not {right!s:.200}"
    differences = (_difference(one, other, f"{path}/{name}") for name, one, other in pairs if one != other)
    return next(differences, f"{path}: only missing or empty parts differ")
