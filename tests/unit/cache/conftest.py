"""A small data set, and a way to build its cache in its own process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csi_job.cache.build import build_cache
from csi_job.cache.settings import CacheSettings
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.zones import ZONES

SIDE_PX = 32
NUM_IMAGES = 30

BUILD = """
import sys
from pathlib import Path
import csi_job.cache.slot_arrays as arrays
from csi_job.cache.build import build_cache
from csi_job.cache.settings import CacheSettings
from csi_job.errors import CsiJobError
from csi_job.logs import set_up_logging
from csi_job.radiographs.settings import RadiographsSettings

data, work, prelude = sys.argv[1:4]
set_up_logging("text")
radiographs = RadiographsSettings(labels=Path(data, "labels.csv"), images=Path(data, "images"))
cache = CacheSettings(image_size_px=32, num_workers=1)
exec(prelude)
try:
    print(build_cache(radiographs, cache, Path(work)).name)
except CsiJobError as error:
    print(error.render(identities=False) if hasattr(error, "render") else error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """`labels.csv` and `images/` of 30 small PNG images of 20 patients; not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = [";".join(("FileID", "PatientID", *ZONES))]
    for number in range(NUM_IMAGES):
        scores = random.integers(0, 4, len(ZONES))
        lines.append(";".join((f"jane-doe-{number:02}", f"jane-{number % 20}", *map(str, scores))))
        pixels_HW = random.integers(0, 255, (60, 50), dtype=np.uint8)
        Image.fromarray(pixels_HW).save(folder / "images" / f"jane-doe-{number:02}.png")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def built(data, tmp_path_factory):
    """The cache of the data; not to be changed."""
    work = tmp_path_factory.mktemp("Ä ö") / "日本"
    return build_cache(settings_of(data), CacheSettings(image_size_px=SIDE_PX, num_workers=2), work)


@pytest.fixture
def children():
    """Return a function that returns this process's children, except servers that earlier tests keep."""
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    others = set(file.read_text().split())
    return lambda: set(file.read_text().split()) - others


@pytest.fixture
def cache():
    return CacheSettings(image_size_px=SIDE_PX, num_workers=2)


@pytest.fixture
def radiographs(data):
    return settings_of(data)


@pytest.fixture
def copied(data, tmp_path):
    """The data, to be changed."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def images_of(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def settings_of(folder: Path, **changes: object) -> RadiographsSettings:
    return RadiographsSettings(labels=folder / "labels.csv", images=folder / "images", **changes)


@pytest.fixture
def start_build(data, tmp_path):
    """Start a build of the data into `tmp_path / "work"`, after running some Python first."""

    def start(prelude=""):
        command = [sys.executable, "-c", BUILD, str(data), str(tmp_path / "work"), prelude]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finished(work: Path) -> list[str]:
    return sorted(path.name for path in (work / "cache").iterdir() if path.is_dir())
