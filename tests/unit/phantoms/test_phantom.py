import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from csi_job.errors import ConfigurationError, DataError
from csi_job.phantoms.drawing import Body, draw_chest
from csi_job.phantoms.phantom import RECIPE, write_phantoms
from csi_job.radiographs.read import find_images, read_radiograph
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import read_table
from csi_job.radiographs.zones import UNKNOWN

SIDE_PX = (100, 160)
ZONE_CENTRES = ((0.30, 0.22), (0.70, 0.22), (0.22, 0.45), (0.78, 0.45), (0.22, 0.66), (0.80, 0.66))  # across, down


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 40, seed=3, side_px=SIDE_PX)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_different_ones(tmp_path):
    for name, seed in (("once", 3), ("again", 3), ("other", 4)):
        write_phantoms(tmp_path / name, 9, seed, side_px=SIDE_PX)
    once = digests(tmp_path / "once")
    del once[RECIPE]
    assert len(once) == 10
    assert digests(tmp_path / "again").items() >= once.items()
    assert not set(digests(tmp_path / "other").values()) & set(once.values())


def test_every_score_is_in_every_zone_and_some_are_unknown(folder):
    table = read_table(folder / "labels.csv", RadiographsSettings())
    assert len(table) == 40
    for zone in range(6):
        assert set(table.zones_NZ[:, zone].tolist()) >= {0, 1, 2, 3}
    assert 0.03 < (table.zones_NZ == UNKNOWN).mean() < 0.16


def test_patients_have_one_to_three_images_with_similar_scores(folder):
    table = read_table(folder / "labels.csv", RadiographsSettings())
    patients, counts = np.unique(table.patient_ids, return_counts=True)
    assert set(counts) == {1, 2, 3}
    known_NZ = np.where(table.zones_NZ == UNKNOWN, np.nan, table.zones_NZ.astype(float))
    csi_N = np.nanmean(known_NZ, axis=1)
    within = [csi_N[np.array(table.patient_ids) == patient].std() for patient in patients[counts > 1]]
    assert np.mean(within) < 0.6 * csi_N.std()


def test_every_format_is_there_and_every_image_can_be_read(folder):
    table = read_table(folder / "labels.csv", RadiographsSettings())
    paths = [*map(Path, find_images(folder / "images", table.file_ids, table.rows))]
    assert {path.name.split(".", 1)[1] for path in paths} == {"png", "jpg", "jpeg", "dcm", "nii.gz"}
    for path in paths:
        pixels_HW = read_radiograph(path, 64, max_image_side_px=1000)
        assert pixels_HW[40:56, 34:40].mean() > pixels_HW[20:44, 10:14].mean() - 90  # the midline is dense
        assert pixels_HW.std() > 15


@pytest.mark.parametrize("zone", range(6))
def test_a_zone_gets_denser_with_its_score_and_the_others_do_not(zone):
    def density(scores, at):
        across, down = ZONE_CENTRES[at]
        values = []
        for seed in range(3):
            random = np.random.default_rng(seed)
            film_HW = draw_chest(Body.sample(random), scores, (200, 200), random)
            rows, columns = round(200 * down), round(200 * across)
            values.append(film_HW[rows - 12 : rows + 12, columns - 8 : columns + 8].mean())
        return float(np.mean(values))

    by_score = [density([score if place == zone else 0 for place in range(6)], zone) for score in range(4)]
    assert np.diff(by_score).min() > 0.03
    elsewhere = (zone + 1) % 6
    dense = density([3 if place == zone else 0 for place in range(6)], elsewhere)
    assert abs(dense - density([0] * 6, elsewhere)) < 0.06


def test_the_heart_lies_on_the_patients_left_which_is_right_on_the_film():
    random = np.random.default_rng(0)
    film_HW = draw_chest(Body.sample(random), [0] * 6, (300, 300), random)
    assert film_HW[195:210, 165:195].mean() > film_HW[195:210, 105:135].mean() + 0.05


def test_of_several_processes_one_draws_and_what_is_there_is_not_drawn_again(tmp_path, monkeypatch):
    drawn = []

    def draw(*arguments):
        drawn.append(arguments)
        return draw_chest(*arguments)

    monkeypatch.setattr("csi_job.phantoms.phantom.draw_chest", draw)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: write_phantoms(tmp_path, 5, seed=3, side_px=SIDE_PX), range(3)))
    assert len(drawn) == 5
    before = digests(tmp_path)
    next(tmp_path.glob("images/*")).unlink()
    write_phantoms(tmp_path, 5, seed=3, side_px=SIDE_PX)
    (tmp_path / "labels.csv").write_text("edited")
    write_phantoms(tmp_path, 5, seed=3, side_px=SIDE_PX)
    assert digests(tmp_path) == before
    assert len(drawn) == 10
    write_phantoms(tmp_path, 4, seed=4, side_px=SIDE_PX)
    assert len(drawn) == 14
    assert len(list(tmp_path.glob("images/*"))) == 4


def test_phantoms_of_an_earlier_version_are_drawn_again(tmp_path):
    write_phantoms(tmp_path, 2, seed=3, side_px=SIDE_PX)
    before = digests(tmp_path)
    (tmp_path / RECIPE).unlink()
    write_phantoms(tmp_path, 2, seed=3, side_px=SIDE_PX)
    assert digests(tmp_path) == before


def test_a_label_table_of_other_data_is_kept(tmp_path):
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(ConfigurationError, match="a label table that is not of phantoms"):
        write_phantoms(tmp_path, 1, seed=0)
    assert (tmp_path / "labels.csv").read_text() == "mine"


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_few_phantoms_can_be_drawn(tmp_path, num_images):
    write_phantoms(tmp_path, num_images, seed=0, side_px=SIDE_PX)
    assert len(list((tmp_path / "images").iterdir())) == num_images


def test_impossible_numbers_and_sizes_are_refused(tmp_path):
    for num_images, words in ((0, "too few phantoms, got 0"), (10**9, "too many phantoms, got 1000000000")):
        with pytest.raises(ConfigurationError, match=words):
            write_phantoms(tmp_path, num_images, seed=0)
    with pytest.raises(ConfigurationError, match="invalid side_px"):
        write_phantoms(tmp_path, 1, seed=0, side_px=(300, 200))


def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_phantoms(tmp_path / "file" / "phantoms", 1, seed=0)
