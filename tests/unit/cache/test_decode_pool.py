import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csi_job.cache import decode_pool as decoders
from csi_job.cache.decode_pool import decode_images
from csi_job.errors import CsiJobError
from csi_job.radiographs.read import read_radiograph
from tests.support.dicom import compressed, dataset_of


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 255, (50, 40), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("num_decoders", [1, 3])
def test_every_image_is_decoded_once_as_in_this_process(paths, num_decoders):
    decoded = dict(decode_images(enumerate(paths), 32, 1000, num_decoders))
    assert sorted(decoded) == list(range(len(paths)))
    for index, path in enumerate(paths):
        assert np.array_equal(decoded[index], read_radiograph(path, 32, max_image_side_px=1000))


def test_decoders_digest_what_they_decode_and_a_corrupt_image_does_not_stop_the_others(paths, tmp_path):
    paths[4].write_bytes(b"x" * 500)
    digests = {}
    decoded = dict(decode_images(enumerate([*paths, tmp_path / "missing.png"]), 32, 1000, 2, digests.__setitem__))
    assert digests == {index: hashlib.sha256(path.read_bytes()).hexdigest() for index, path in enumerate(paths)}
    assert decoded[len(paths)] == "the image does not exist"
    assert decoded[4].startswith("the file is not an image: PNG, JPEG, ")
    assert sum(isinstance(answer, np.ndarray) for answer in decoded.values()) == len(paths) - 1


def test_nothing_to_decode_starts_nothing(monkeypatch):
    monkeypatch.setattr(decoders, "_Decoder", None)
    assert list(decode_images([], 32, 1000, 2)) == []


@pytest.mark.parametrize("num_kills", [1, 2])
def test_a_dead_decoder_is_replaced_and_its_image_retried_once(paths, monkeypatch, num_kills):
    send = decoders._Decoder._send
    killed = []

    def kill_and_send(self):
        if self.image[0] == 3 and self._is_ready and len(killed) < num_kills:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
        send(self)

    monkeypatch.setattr(decoders._Decoder, "_send", kill_and_send)
    decoded = dict(decode_images(enumerate(paths), 32, 1000, 2))
    assert len(set(killed)) == num_kills
    answer = decoded.pop(3)
    if num_kills == 1:
        assert np.array_equal(answer, read_radiograph(paths[3], 32, max_image_side_px=1000))
    else:
        assert answer == "the image cannot be decoded (its decoder ended with signal 9)"
    assert all(isinstance(answer, np.ndarray) for answer in decoded.values())
    assert len(decoded) == len(paths) - 1


def test_an_image_that_takes_too_long_is_corrupt_and_not_retried(paths, monkeypatch):
    starts = []
    start = decoders._Decoder._start
    monkeypatch.setattr(decoders._Decoder, "_start", lambda self: (starts.append(1), start(self)))
    decoded = dict(decode_images(enumerate(paths[:3]), 32, 1000, 1, limit_s=1e-6))
    assert set(decoded.values()) == {"the image cannot be decoded (it took longer than 1e-06 s)"}
    assert len(decoded) == 3
    assert len(starts) == 4


def test_a_decoder_that_cannot_be_started_is_an_error(paths, monkeypatch):
    monkeypatch.setattr(decoders.sys, "executable", "/bin/false")
    with pytest.raises(CsiJobError, match="cannot be started, got 'exit code 1'"):
        list(decode_images(enumerate(paths), 32, 1000, 1))


def test_decoders_have_no_secrets_in_their_environment_and_end_when_the_caller_stops_early(
    paths, monkeypatch, children
):
    secrets = ("CSI_JOB_STORAGE__PASSWORD", "WANDB_API_KEY", "PGPASSWORD", "X_TOKEN")
    for name, value in {**dict.fromkeys(secrets, "s3cret"), "LC_ALL": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    decoding = decode_images(enumerate(paths), 32, 1000, 2)
    next(decoding)
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in children()]
    decoding.close()
    assert not children()
    assert len(environments) == 2
    for environment in environments:
        assert b"s3cret" not in environment
        assert {b"LC_ALL=C.UTF-8", b"MALLOC_MMAP_THRESHOLD_=33554432"} <= set(environment.split(b"\0"))


def test_a_file_on_which_the_decoder_aborts_is_corrupt_and_nothing_is_printed(tmp_path, paths, capfd):
    sound = compressed(
        tmp_path, dataset_of(np.arange(2000, dtype=np.uint16).reshape(50, 40)), "JPEGLosslessProcess14_1"
    )
    scan = sound.rindex(b"\xff\xd8")
    path = tmp_path / "aborts.dcm"
    path.write_bytes(sound[: scan + 16] + b"\xff" + sound[scan + 17 :])  # gdcm 3.2 throws past its callers
    decoded = dict(decode_images(enumerate([path, *paths]), 32, 1000, 1))
    assert isinstance(decoded.pop(0), str)
    assert all(isinstance(answer, np.ndarray) for answer in decoded.values())
    assert capfd.readouterr() == ("", "")
