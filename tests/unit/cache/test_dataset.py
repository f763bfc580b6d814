"""Splits as tensors."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.manifest import load_info
from csi_job.cache.settings import CacheSettings
from tests.unit.cache.conftest import SIDE_PX, settings_of


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    return build_cache(settings_of(data), CacheSettings(image_size_px=SIDE_PX, num_workers=2), work)


def test_tensors_have_their_types_and_shapes(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = Cache.open(folder).split("train")
    num_images = load_info(folder).num_images["train"]
    assert len(split) == num_images == len(split.pseudonyms)
    assert split.images_NHW.shape == (num_images, SIDE_PX, SIDE_PX)
    assert split.images_NHW.dtype == torch.uint8
    assert split.zones_NZ.shape == (num_images, 6)
    assert split.zones_NZ.dtype == split.patients_N.dtype == torch.int64
    assert set(split.zones_NZ.unique().tolist()) <= {0, 1, 2, 3, 4}


def test_no_patient_is_in_two_splits(folder: Path) -> None:
    patients = [set(Cache.open(folder).split(name).patients_N.tolist()) for name in ("train", "validation", "test")]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]
    assert len(set().union(*patients)) == load_info(folder).num_patients


def test_writing_to_the_tensor_does_not_change_the_cache(folder: Path) -> None:
    first, second = Cache.open(folder).split("test"), Cache.open(folder).split("test")
    before = second.images_NHW.clone()
    first.images_NHW.zero_()
    assert Cache.open(folder).split("test").images_NHW.equal(before)


def test_a_split_has_one_copy_on_a_device_until_it_leaves(folder: Path) -> None:
    split, meta = Cache.open(folder).split("validation"), torch.device("meta")
    moved = split.on(meta)
    assert {tensor.device for tensor in (moved.images_NHW, moved.zones_NZ, moved.patients_N)} == {meta}
    assert split.on(meta) is moved
    assert split.on(torch.device("cpu")) is split
    split.leave_devices()
    assert split.on(meta) is not moved
