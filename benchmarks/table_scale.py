"""What a label table of a million rows costs, function by function, in CPU seconds; and in how much memory.

Run: `python -m benchmarks.table_scale [--rows N …] [--repeats N]`. Each image is a file of 8 bytes that stands for the
same pixels, so reading and decoding images is left out, and what grows with the rows is measured.
"""

import argparse
import io
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import machine, spread
from csi_job.cache import build, key
from csi_job.cache.digest_index import DigestIndex
from csi_job.cache.manifest import verify_cache
from csi_job.cache.problems import write_problems
from csi_job.cache.settings import CacheSettings
from csi_job.errors import Problem
from csi_job.files import digest
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable
from csi_job.radiographs.zones import NUM_CLASSES, ZONES

ROWS = (10_000, 100_000, 1_000_000)
IMAGES_PER_PATIENT = 2
SIDE_PX = 16
TEST_SHARE = 0.15
NUM_RESAMPLES = 100
STEPS: tuple[tuple[str, Any, str], ...] = (  # of a build: what is timed, and where it is found
    ("read the table", key, "read_table"),
    ("sort it", LabelTable, "sorted_by_file"),
    ("find the images", key, "find_images"),
    ("look up their digests", key, "DigestIndex"),
    ("content key", key, "_content_key"),
    ("split", build, "split_patients"),
    ("fill the slots", build, "_fill_slots"),
    ("record their digests", DigestIndex, "add"),
    ("check for changes", key.Source, "check_unchanged"),
    ("split table, manifest", build, "_describe"),
)
OPEN = """
import sys, time
from pathlib import Path
import psutil
from csi_job.cache.dataset import Cache
memory = psutil.Process().memory_info  # the peak would be the parent's, which a new process inherits
before, start = memory().rss, time.process_time()
cache = Cache.open(Path(sys.argv[1]))
cache.train, cache.validation
print(time.process_time() - start, memory().rss - before)
"""
seconds: dict[str, list[float]] = defaultdict(list)
spent: dict[str, float] = defaultdict(float)


def main() -> None:
    """Print a table for each size, measured in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes of the table")
    parser.add_argument("--repeats", type=int, default=3, help="builds of each size")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        measure(arguments.rows[0], arguments.repeats)
        return
    print(machine("numpy"), flush=True)
    for num_rows in arguments.rows:
        command = (sys.executable, "-m", __spec__.name, "--alone", "--repeats", str(arguments.repeats))
        subprocess.run([*command, "--rows", str(num_rows)], check=True)


def measure(num_rows: int, repeats: int) -> None:
    """Build a cache, call the build again when it is finished, and open it, some times over."""
    for name, owner, function in STEPS:
        setattr(owner, function, timed(name, getattr(owner, function)))
    build.decode_images = same_pixels  # type: ignore[assignment]
    cache = CacheSettings.model_construct(image_size_px=SIDE_PX, normalisation="medical", num_workers=1)
    problems = [Problem("no image of this name", row=row, file_id=f"film-{row}") for row in range(num_rows)]
    with tempfile.TemporaryDirectory() as temporary:
        radiographs = write_data(Path(temporary), num_rows)
        time.sleep(2.1)  # files changed just now are not trusted
        for number in range(repeats):
            work = Path(temporary, f"work-{number}")
            folder = timed("build", build.build_cache)(radiographs, cache, work)
            first = dict(spent)
            spent.clear()
            timed("build again", build.build_cache)(radiographs, cache, work)
            first |= {"build again": spent["build again"], "digests known": spent["look up their digests"]}
            timed("problems.csv", write_problems)(work, problems)
            opened = subprocess.run([sys.executable, "-c", OPEN, folder], check=True, stdout=subprocess.PIPE, text=True)
            start_s, memory_bytes = map(float, opened.stdout.split())
            first |= {"problems.csv": spent["problems.csv"], "worker's start": start_s}
            timed("verify the cache", verify_cache)(folder)
            first["verify the cache"] = spent["verify the cache"]
            for name, value in first.items():
                seconds[name].append(value)
            spent.clear()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    measure_tables(num_rows, repeats)
    print(f"\n{num_rows:,} rows; CPU seconds, median [quartiles] of {repeats}")
    for name, values in seconds.items():
        print(f"  {name:<26}{spread(values)}")
    print(f"  memory: build {peak_mb:,.0f} MB, worker's start {memory_bytes / 1e6:,.0f} MB more", flush=True)


def measure_tables(num_rows: int, repeats: int) -> None:
    """Measure what follows the network: the tables of all images in `predict`, and `evaluate` on the test split."""
    # PyTorch comes with them, whose memory is not that of a build.
    from csi_job.evaluation.evaluate import measure_with_intervals
    from csi_job.evaluation.measures import Predictions
    from csi_job.evaluation.predict import Prediction
    from csi_job.evaluation.predictions_file import split_predictions_csv, write_predictions
    from csi_job.evaluation.settings import EvaluationSettings

    random = np.random.default_rng(0)
    num_test = round(num_rows * TEST_SHARE)
    probabilities_NZK = random.dirichlet(np.ones(NUM_CLASSES), size=(num_test, len(ZONES)))
    zones_NZ = random.integers(NUM_CLASSES, size=(num_test, len(ZONES)))
    pseudonyms = tuple(map(str, range(num_test)))
    film = Prediction(Path("film.png"), (0,) * 6, probabilities_NZK[0], 0.5, "low", (0.5, 0.25, 0.25))
    for _ in range(repeats):
        spent.clear()
        predicted = timed("predict's table", write_predictions)
        predicted(itertools.repeat(film, num_rows), io.StringIO(), "csv")
        test = timed("evaluate's CSI", Predictions)(
            probabilities_NZK, zones_NZ, np.arange(num_test) // IMAGES_PER_PATIENT, pseudonyms
        )
        timed("evaluate's table", split_predictions_csv)(test)
        settings = EvaluationSettings(num_bootstrap=NUM_RESAMPLES)
        timed(f"metrics, {NUM_RESAMPLES} resamples", measure_with_intervals)(test, settings)
        for name, value in spent.items():
            seconds[name].append(value)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function; each call adds its CPU seconds to `spent`."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] += time.process_time() - start

    return call


def same_pixels(
    images: Iterable[tuple[int, Path]],
    _side_px: int,
    _max_image_side_px: int,
    _num_decoders: int,
    on_digest: Callable[[int, str], object],
) -> Iterator[tuple[int, np.ndarray]]:
    """Stand for decoding."""
    pixels_HW = np.arange(SIDE_PX**2, dtype=np.uint8).reshape(SIDE_PX, SIDE_PX)
    for index, _ in images:
        on_digest(index, digest(index.to_bytes(8, "big")))
        yield index, pixels_HW


def write_data(folder: Path, num_rows: int) -> RadiographsSettings:
    """Write a table of random scores, a few of them unknown, and its images."""
    random = np.random.default_rng(0)
    scores_NZ = random.choice(5, size=(num_rows, len(ZONES)), p=[0.4, 0.3, 0.15, 0.1, 0.05])
    with (folder / "labels.csv").open("w", encoding="utf-8") as file:
        file.write(";".join(("FileID", "PatientID", *ZONES)) + "\n")
        for row, scores_Z in enumerate(scores_NZ.tolist()):
            file.write(f"film-{row};patient-{row // IMAGES_PER_PATIENT};{';'.join(map(str, scores_Z))}\n")
    images = folder / "images"
    images.mkdir()
    for row in range(num_rows):
        (images / f"film-{row}.png").write_bytes(row.to_bytes(8, "big"))
    return RadiographsSettings(labels=folder / "labels.csv", images=images)


if __name__ == "__main__":
    main()
