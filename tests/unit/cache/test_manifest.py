import dataclasses
import shutil
from pathlib import Path

import pytest

from csi_job.cache.dataset import Cache
from csi_job.cache.manifest import load_info, manifest_text, verify_cache
from csi_job.errors import DataError
from csi_job.files import digest_file
from csi_job.radiographs.split import SPLITS


@pytest.fixture
def folder(built, tmp_path):
    shutil.copytree(built, tmp_path / built.name)
    return tmp_path / built.name


@pytest.mark.parametrize("name", ["train.npy", "validation.npy", "test.npy", "split.csv", "split.npy", "manifest.json"])
@pytest.mark.parametrize("place", [3, 200, -5])
def test_a_flipped_bit_is_found_and_its_file_named(folder, name, place):
    verify_cache(folder)
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as caught:
        verify_cache(folder)
    assert "cache build" in str(caught.value)


@pytest.mark.parametrize("name", ["train.npy", "split.csv", "manifest.json"])
def test_a_short_and_a_missing_file_are_found(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    with pytest.raises(DataError, match=name):
        verify_cache(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=r"readable|cannot be read"):
        verify_cache(folder)


@pytest.mark.parametrize("name", ["train.npy", "split.npy", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"junk\n;;\n"])
def test_damaged_files_are_data_errors_when_loaded(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError):
        Cache.open(folder).split("train")


def as_version_0_1_0(folder: Path) -> None:
    """Make a cache one of a version that wrote its rows as text only."""
    info = load_info(folder)
    files = {name: digest for name, digest in info.files.items() if name != "split.npy"}
    files["split.csv"] = digest_file(folder / "split.csv")
    (folder / "manifest.json").write_text(manifest_text(dataclasses.replace(info, files=files)))
    (folder / "split.npy").unlink(missing_ok=True)


def test_a_cache_of_version_0_1_0_has_the_same_splits(built, folder):
    as_version_0_1_0(folder)
    verify_cache(folder)
    for name in SPLITS:
        now, then = Cache.open(built).split(name), Cache.open(folder).split(name)
        assert now.pseudonyms == then.pseudonyms
        assert now.zones_NZ.equal(then.zones_NZ)
        assert now.patients_N.equal(then.patients_N)
    assert Cache.open(folder).num_patients == Cache.open(built).num_patients


def test_an_array_with_a_damaged_header_is_refused_in_one_line(folder):
    content = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(content.replace(b"}", b"{", 1))
    with pytest.raises(DataError, match=r"train\.npy of the cache is damaged"):
        _ = Cache.open(folder).train


@pytest.mark.parametrize("change", [("image;patient", "patient;image"), ("train;", "trial;"), (";4\n", "\n")])
def test_a_split_table_that_is_another_is_refused(folder, change):
    path = folder / "split.csv"
    path.write_text(path.read_text().replace(";3\n", ";4\n").replace(*change, 1))
    as_version_0_1_0(folder)
    with pytest.raises(DataError, match=r"split.csv of the cache is damaged"):
        Cache.open(folder).split("train")


def test_another_version_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(DataError, match="another version, got 99"):
        load_info(folder)


def test_a_folder_without_a_cache_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no readable cache"):
        load_info(tmp_path)
