"""The finished cache: what it says of itself, and that damage is found and named."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.manifest import CacheInfo, describe_change, load_info, read_split_table, verify_cache
from csi_job.cache.settings import CacheSettings
from csi_job.errors import DataError
from tests.unit.cache.conftest import settings_of


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    return build_cache(settings_of(data), CacheSettings(image_size_px=32, num_workers=2), work)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / built.name)
    return tmp_path / built.name


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_sound_cache_passes(folder: Path) -> None:
    verify_cache(folder)


@pytest.mark.parametrize("name", ["train.npy", "validation.npy", "test.npy", "split.csv", "manifest.json"])
@pytest.mark.parametrize("place", [3, 200, -5])
def test_a_flipped_bit_is_found_and_its_file_named(folder: Path, name: str, place: int) -> None:
    flip_bit(folder / name, place)
    with pytest.raises(DataError, match=name) as caught:
        verify_cache(folder)
    assert "cache build" in str(caught.value)


@pytest.mark.parametrize("name", ["train.npy", "split.csv", "manifest.json"])
def test_a_short_and_a_missing_file_are_found(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    with pytest.raises(DataError, match=name):
        verify_cache(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=r"readable|cannot be read"):
        verify_cache(folder)


@pytest.mark.parametrize("name", ["train.npy", "split.csv", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"junk\n;;\n"])
def test_damaged_files_are_data_errors_when_loaded(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Cache.open(folder).split("train")
    assert "\n" not in str(caught.value)


def test_a_split_table_with_other_columns_is_refused(folder: Path) -> None:
    path = folder / "split.csv"
    path.write_text(path.read_text().replace("image;patient", "patient;image", 1))
    with pytest.raises(DataError, match=r"split.csv of the cache is damaged"):
        read_split_table(folder)


def test_another_version_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(DataError, match="another version, got 99"):
        load_info(folder)


def test_a_folder_without_a_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable cache"):
        load_info(tmp_path)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"num_images": {"train": 80, "test": 20}}, "labels: 127 → 100 rows"),
        ({"num_images": {"train": 70}, "num_patients": 71}, "labels: 127 → 70 rows, 90 → 71 patients"),
        ({"image_size_px": 64, "split_seed": 7}, "32 → 64 px, split seed 42 → 7"),
        ({"class_counts": {"train": [[1]]}}, "the same 127 rows with other scores"),
        ({}, "the same 127 rows with other ids, images or settings"),
    ],
)
def test_a_change_of_the_data_is_told_by_what_changed(changed: dict[str, Any], expected: str) -> None:
    counts = {"num_images": {"train": 100, "test": 27}, "num_patients": 90, "num_corrupt": 0}
    old = CacheInfo("a", 32, "medical", 42, (0.7, 0.15, 0.15), **counts, class_counts={}, warnings=(), files={})
    assert describe_change(old, dataclasses.replace(old, key="b", **changed)) == expected
