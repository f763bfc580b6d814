import os
from pathlib import Path

import numpy as np
import pytest

from csi_job.cache.slot_arrays import SlotArrays
from csi_job.files import digest

SPLIT_N = np.array([0, 1, 0, 2, 0, 1, 0, 2], dtype=np.int8)
SIDE_PX = 4


def pixels(index: int) -> np.ndarray:
    return np.full((SIDE_PX, SIDE_PX), index + 1, dtype=np.uint8)


def sha256(index: int) -> str:
    return digest(bytes([index]))


def open_arrays(folder: Path) -> SlotArrays:
    return SlotArrays(folder, folder / "done_flags", SPLIT_N, SIDE_PX)


def filled(folder: Path) -> SlotArrays:
    arrays = open_arrays(folder)
    for index in range(8):
        arrays.write_slot(index, pixels(index), sha256(index))
    return arrays


def test_slots_filled_in_any_order_make_npy_files(tmp_path):
    with open_arrays(tmp_path) as arrays:
        for index in (7, 0, 3, 6, 1, 5, 2, 4):
            arrays.write_slot(index, pixels(index), sha256(index))
        assert arrays.empty_slots(range(8)) == []
    for split, name in enumerate(("train", "validation", "test")):
        images_NHW = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        assert images_NHW[:, 0, 0].tolist() == (np.flatnonzero(split == SPLIT_N) + 1).tolist()


def test_what_was_filled_is_known_after_opening_again(tmp_path):
    with open_arrays(tmp_path) as arrays:
        arrays.write_slot(2, pixels(2), sha256(2))
        arrays.write_slot(5, pixels(5), sha256(5))
    with open_arrays(tmp_path) as arrays:
        (part,) = arrays.claim_parts()
        assert arrays.empty_slots(part) == [0, 1, 3, 4, 6, 7]
    assert np.load(tmp_path / "train.npy")[1, 0, 0] == 3


def test_slots_decoded_from_other_content_than_the_image_has_now_are_emptied(tmp_path):
    with open_arrays(tmp_path) as arrays:
        for index in (2, 5, 6):
            arrays.write_slot(index, pixels(index), sha256(index))
    with open_arrays(tmp_path) as arrays:
        assert arrays.claim_all()
        digests = list(map(sha256, range(8)))
        assert not arrays.empty_changed(digests)
        digests[5], digests[6] = sha256(0), "unreadable"
        assert arrays.empty_changed(digests)
        flags = (tmp_path / "done_flags").read_bytes()  # as a kill would leave them while the slots are filled again
        assert list(map(bool, flags[:8])) == [index == 2 for index in range(8)]
        assert flags[8 + 5 * 32 : 8 + 7 * 32] == bytes(64)
        assert not arrays.empty_changed(digests)
    with open_arrays(tmp_path) as arrays:
        assert arrays.claim_all()
        assert arrays.empty_slots(range(8)) == [0, 1, 3, 4, 5, 6, 7]


def test_flags_are_ignored_if_an_array_is_missing_or_short(tmp_path):
    with filled(tmp_path):
        pass
    (tmp_path / "validation.npy").unlink()
    os.truncate(tmp_path / "test.npy", 140)
    with open_arrays(tmp_path) as arrays:
        assert arrays.claim_all()
        assert arrays.empty_slots(range(8)) == [1, 3, 5, 7]


def test_arrays_that_another_process_has_replaced_are_not_filled(tmp_path):
    with filled(tmp_path) as arrays:
        (tmp_path / "test.npy").unlink()
        with open_arrays(tmp_path):
            assert list(arrays.claim_parts()) == []
            assert not arrays.claim_all()


def test_doubts_are_known_to_a_later_process(tmp_path):
    with filled(tmp_path):
        pass
    with open_arrays(tmp_path) as arrays:
        assert arrays.claim_all()
        assert arrays.doubts() == dict.fromkeys(range(8), "nearly all black")


@pytest.mark.parametrize("removed", [[0], [6], [0, 1, 4], [3, 7], []])
def test_removed_images_leave_no_gap(tmp_path, removed):
    with filled(tmp_path) as arrays:
        files = arrays.without(removed)
    for split, name in enumerate(("train", "validation", "test")):
        members = np.flatnonzero(split == SPLIT_N)
        kept = [index + 1 for index in members if index not in removed]
        assert np.load(files[name])[:, 0, 0].tolist() == kept
        assert np.load(tmp_path / f"{name}.npy")[:, 0, 0].tolist() == (members + 1).tolist()  # until the very end


def test_the_header_is_one_that_numpy_reads_however_many_images_there_are(tmp_path):
    many_N = np.zeros(123_456, dtype=np.int8)
    with SlotArrays(tmp_path, tmp_path / "done_flags", many_N, 2):
        pass
    assert np.load(tmp_path / "train.npy", mmap_mode="r").shape == (123_456, 2, 2)
