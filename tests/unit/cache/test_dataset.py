import threading
import warnings
from dataclasses import replace

import pytest
import torch

from csi_job.cache.dataset import NUM_AHEAD, Cache
from csi_job.cache.manifest import load_info
from tests.unit.cache.conftest import SIDE_PX


def test_tensors_have_their_types_and_shapes(built):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = Cache.open(built).split("train")
    num_images = load_info(built).num_images["train"]
    assert len(split) == num_images == len(split.pseudonyms)
    assert split.images_NHW.shape == (num_images, SIDE_PX, SIDE_PX)
    assert split.images_NHW.dtype == torch.uint8
    assert split.zones_NZ.shape == (num_images, 6)
    assert split.zones_NZ.dtype == split.patients_N.dtype == torch.int64
    assert set(split.zones_NZ.unique().tolist()) <= {0, 1, 2, 3, 4}


def test_no_patient_is_in_two_splits(built):
    patients = [set(Cache.open(built).split(name).patients_N.tolist()) for name in ("train", "validation", "test")]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]
    assert len(set().union(*patients)) == load_info(built).num_patients


def test_writing_to_the_tensor_does_not_change_the_cache(built):
    first, second = Cache.open(built).split("test"), Cache.open(built).split("test")
    before = second.images_NHW.clone()
    first.images_NHW.zero_()
    assert Cache.open(built).split("test").images_NHW.equal(before)


def test_a_split_has_one_copy_on_a_device_until_it_leaves(built):
    split, meta = Cache.open(built).split("validation"), torch.device("meta")
    moved = split.on(meta)
    assert {tensor.device for tensor in (moved.images_NHW, moved.zones_NZ, moved.patients_N)} == {meta}
    assert split.on(meta) is moved
    assert split.on(torch.device("cpu")) is split
    split.leave_devices()
    assert split.on(meta) is not moved


CPU = torch.device("cpu")


def test_batches_fetched_ahead_are_those_of_an_index(built):
    split = Cache.open(built).split("train")
    indices = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).split(4)
    taken = []
    batches = split.fetch_ahead((taken.append(index_B) or index_B for index_B in indices), CPU)
    for number, (image_BHW, zones_BZ) in enumerate(batches):
        assert image_BHW.equal(split.images_NHW[indices[number]])
        assert zones_BZ.equal(split.zones_NZ[indices[number]])
        assert len(taken) == min(number + 1 + NUM_AHEAD, len(indices))  # so memory is bounded
    assert number == len(indices) - 1 > NUM_AHEAD


@pytest.mark.parametrize("ending", ["used up", "closed", "failed"])
def test_the_thread_that_fetches_ends_with_its_batches_and_reports_its_error(built, ending):
    split = Cache.open(built).split("train")
    batches = replace(split, zones_NZ=split.zones_NZ[: 3 if ending == "failed" else None]).fetch_ahead(
        torch.arange(len(split)).split(2), CPU
    )
    next(batches)
    assert "batches_0" in {thread.name for thread in threading.enumerate()}
    if ending == "closed":
        batches.close()
    elif ending == "failed":
        with pytest.raises(IndexError):
            next(batches)
    else:
        assert len(list(batches)) == (len(split) - 1) // 2
    assert "batches_0" not in {thread.name for thread in threading.enumerate()}
