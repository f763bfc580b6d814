"""How fast radiographs become a cache, compared with Pillow, pydicom and nibabel used plainly; and in how much memory.

Run: `python -m benchmarks.cache_build [--images FOLDER] [--repeats N]`. All times are of one core, ours and the
peer's in turn on the same files, which the operating system holds in memory. Ours is measured in a process with the
environment of the cache's decoders, the peer's in one with the user's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from benchmarks.figures import machine, spread
from csi_job.cache.decode_pool import decoder_environment
from csi_job.phantoms.drawing import Body, draw_chest
from csi_job.phantoms.files import write_film
from csi_job.phantoms.phantom import write_phantoms
from csi_job.radiographs.read import read_radiograph
from tests.support.dicom import compressed, dataset_of

SIDE_PX = 224
MAX_SIDE_PX = 20_000
LARGE_PX = (2500, 3000)  # as a detector gives them
KINDS = {"PNG, 8 bit": 0, "JPEG": 1, "PNG, 16 bit": 2, "DICOM, raw": 3, "NIfTI, gzipped": 5}  # variants of write_film
SYNTAXES = {
    "DICOM, JPEG 2000": "JPEG2000Lossless",
    "DICOM, lossless JPEG": "JPEGLosslessProcess14_1",
    "DICOM, RLE": "RLELossless",
}
ROWS_FIRST = "NIfTI, rows first"
MIX = "the 11 kinds above, one each"
NUM_MANY = 200


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of other images to decode too")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of measurements")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    print(machine("pillow", "pydicom", "nibabel"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print_decoding(decoding_sets(folder, arguments.images), arguments.repeats)
        print_builds(folder, arguments.repeats)
        print_memory(folder)


def decoding_sets(folder: Path, other: Path | None) -> dict[str, list[Path]]:
    """Return named lists of files: one large film of each kind, small mixed ones, and the user's own."""
    random = np.random.default_rng(0)
    film_HW = draw_chest(Body.sample(random), [0] * 6, LARGE_PX, random)
    place = folder / "large"
    place.mkdir()
    for name, variant in KINDS.items():
        write_film(film_HW, place / name, variant)
    levels_HW = np.rint(film_HW * 4095).astype(np.uint16)
    for name, syntax in SYNTAXES.items():
        dataset = dataset_of(levels_HW, WindowCenter=2048, WindowWidth=4096)
        (place / f"{name}.dcm").write_bytes(compressed(folder, dataset, syntax))
    lossy = dataset_of((levels_HW // 16).astype(np.uint8), WindowCenter=128, WindowWidth=256)
    (place / "DICOM, lossy JPEG.dcm").write_bytes(compressed(folder, lossy, "JPEGBaselineProcess1"))
    upright = nibabel.Nifti1Image(levels_HW.astype(np.int16).T[:, None, ::-1], np.diag([-1, 1, 1, 1]))
    (place / "NIfTI, plain.nii").write_bytes(upright.to_bytes())
    axes = [[0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]
    (place / f"{ROWS_FIRST}.nii").write_bytes(
        nibabel.Nifti1Image(levels_HW.astype(np.int16)[..., None], axes).to_bytes()
    )
    sets = {path.name.partition(".")[0]: [path] for path in sorted(place.iterdir())}
    sets[MIX] = [path for paths in sets.values() for path in paths]
    write_phantoms(folder / "phantoms", 64, seed=0)
    sets["phantoms, 400-700 px"] = sorted((folder / "phantoms" / "images").iterdir())
    if other is not None:
        sets[f"images given ({other.name})"] = sorted(path for path in other.iterdir() if path.is_file())
    return sets


def plainly(path: Path, *, as_ours: bool = False) -> np.ndarray:
    """Decode and resize as a short script would, with the peer libraries alone; on request with our grey scale."""
    if ".nii" in path.suffixes:
        grey_HW = np.squeeze(nibabel.load(path).get_fdata())
        image = eight_bits(grey_HW if path.name.startswith(ROWS_FIRST) else grey_HW.T[::-1], as_ours)
    elif path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        grey_HW = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            grey_HW = grey_HW.max() - grey_HW
        image = Image.fromarray((grey_HW / (16 if grey_HW.max() > 255 else 1)).astype(np.uint8))  # of 12 or 8 bits
    else:
        image = Image.open(path)
        image = eight_bits(np.asarray(image), as_ours) if image.mode.startswith("I") else image.convert("L")
    return np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def eight_bits(levels_HW: np.ndarray, as_ours: object) -> Image.Image:
    """Scale by the extremes, or by percentiles as csi-job does."""
    ends = np.percentile(levels_HW, (0.5, 99.5)) if as_ours else (levels_HW.min(), levels_HW.max())
    levels_HW = levels_HW.astype(np.float32)
    return Image.fromarray((255 * np.clip((levels_HW - ends[0]) / (ends[1] - ends[0]), 0, 1)).astype(np.uint8))


def ours(path: Path) -> np.ndarray:
    """Decode and resize as the cache does."""
    return read_radiograph(path, SIDE_PX, max_image_side_px=MAX_SIDE_PX)


def print_decoding(sets: dict[str, list[Path]], repeats: int) -> None:
    """Print images per second and core, with the mean difference from a full decode in grey levels (median)."""
    print("\nDecoding to 224 px, images/s of one core, median [quartiles]")
    print(f"{'files':<30}{'csi-job':>22}{'plain':>22}{'ratio':>20}{'difference':>12}")
    workers = Worker("ours", decoder_environment()), Worker("plainly", {})
    for name, paths in sets.items():
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(repeats + 1):  # the first is not counted
            for measured, worker in zip(times, workers, strict=True):
                seconds = worker.measure(paths)
                if repeat:
                    measured.append(seconds)
        difference = statistics.median(
            np.abs(ours(path).astype(float) - plainly(path, as_ours=True)).mean() for path in paths
        )
        rates = [[len(paths) / seconds for seconds in measured] for measured in times]
        ratio = [a / b for a, b in zip(*rates, strict=True)]
        print(f"{name:<30}{spread(rates[0]):>22}{spread(rates[1]):>22}{spread(ratio):>20}{difference:>12.2f}")


def print_builds(folder: Path, repeats: int) -> None:
    """Print what a whole build costs in separate processes: start-up, digests, decoding, files on the disk."""
    data = folder / "many"
    write_phantoms(data, NUM_MANY, seed=1)
    builds, plain = [], []
    for number in range(repeats):
        builds.append(run(BUILD, data, folder / f"work-{number}"))
        plain.append(run(PLAIN, data, folder / "plain.npy"))
    warm = [run(BUILD, data, folder / "work-0") for _ in range(repeats)]
    print(f"\nA whole run over {NUM_MANY} phantoms, start-up included, images/s of processor time, median [quartiles]")
    print(f"csi-job cache build, one decoder   {spread([NUM_MANY / measured['cpu_s'] for measured in builds])}")
    print(f"plain script into one array        {spread([NUM_MANY / measured['cpu_s'] for measured in plain])}")
    print(f"warm cache found again             {spread([1000 * measured['call_s'] for measured in warm])} ms in all")


def print_memory(folder: Path) -> None:
    """Print the peak memory of builder, decoder and the plain script for N and 4N images."""
    print("\nPeak resident memory, MB")
    print(f"{'images':>8}{'builder':>10}{'decoder':>10}{'plain script':>14}{'arrays on disk':>16}")
    for num_images in (NUM_MANY, 4 * NUM_MANY):
        data = folder / f"memory-{num_images}"
        write_phantoms(data, num_images, seed=1, side_px=(100, 140))
        built = run(BUILD, data, folder / f"memory-work-{num_images}")
        plain = run(PLAIN, data, folder / "plain.npy")
        on_disk = num_images * SIDE_PX**2 / 1e6
        peaks = (built["peak_mb"], built["decoder_mb"], plain["peak_mb"], on_disk)
        print(f"{num_images:>8}{peaks[0]:>10.0f}{peaks[1]:>10.0f}{peaks[2]:>14.0f}{peaks[3]:>16.0f}")


MEASURE = """
import json, resource, sys, time
from pathlib import Path
data, target = Path(sys.argv[1]), Path(sys.argv[2])
measured = {}
def peak_mb(pid="self"):  # not ru_maxrss, which a child inherits from its parent
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))
def report():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    measured["cpu_s"] = sum(usage.ru_utime + usage.ru_stime for usage in used)
    measured["peak_mb"] = peak_mb()
    print(json.dumps(measured))
"""
BUILD = (
    MEASURE
    + """
from csi_job.cache import decode_pool as decoders
from csi_job.cache.build import build_cache
from csi_job.cache.settings import CacheSettings
from csi_job.radiographs.settings import RadiographsSettings
kill = decoders._Decoder.kill
def kill_measured(self):
    measured["decoder_mb"] = peak_mb(self._process.pid)
    kill(self)
decoders._Decoder.kill = kill_measured
radiographs = RadiographsSettings(labels=data / "labels.csv", images=data / "images")
started = time.perf_counter()
build_cache(radiographs, CacheSettings(image_size_px=224, num_workers=1), target)
measured["call_s"] = time.perf_counter() - started
report()
"""
)
PLAIN = (
    MEASURE
    + f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from cache_build import plainly
np.save(target, np.stack([plainly(path) for path in sorted((data / "images").iterdir())]))
report()
"""
)

WORKER = """
import json, sys, time
from pathlib import Path
from benchmarks.cache_build import {reader}
for line in sys.stdin:
    started = time.process_time()
    for path in map(Path, json.loads(line)):
        {reader}(path)
    print(time.process_time() - started, flush=True)
"""


def run(script: str, data: Path, target: Path) -> dict[str, float]:
    """Run a measured script in its own process and return what it prints."""
    command = [sys.executable, "-c", script, str(data), str(target)]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured


class Worker:
    """A process that decodes files with one of this module's functions."""

    def __init__(self, reader: str, environment: dict[str, str]) -> None:
        """Start it."""
        script = WORKER.format(reader=reader)
        self._process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def measure(self, paths: list[Path]) -> float:
        """Return the seconds of processor time that all files take."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(path) for path in paths]), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


if __name__ == "__main__":
    main()
