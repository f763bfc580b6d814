"""The version of the reader of a file, by its first bytes."""

import gzip

import numpy as np
from PIL import Image

from csi_job.phantoms.files import NUM_VARIANTS, write_film
from csi_job.radiographs.content import NEWEST_READER, reader_version, reader_versions
from tests.support.dicom import compressed, dataset_of, encoded, table
from tests.unit.radiographs.conftest import encode
from tests.unit.radiographs.test_dicom import in_floats
from tests.unit.radiographs.test_nifti import extended_nifti, nifti
from tests.unit.radiographs.test_picture import deep_png


def test_files_whose_pixels_did_not_change_keep_their_reader_and_so_their_caches(tmp_path, film_HW, stored_HW):
    for variant in range(NUM_VARIANTS):
        write_film(film_HW.astype(np.float32) / 255, tmp_path / f"film{variant}", variant)
    colours_HWC = np.stack([film_HW] * 3, axis=-1)
    unchanged = [path.read_bytes() for path in tmp_path.iterdir()]
    unchanged += [encoded(dataset_of(colours_HWC, PhotometricInterpretation="RGB", PlanarConfiguration=0))]
    assert {reader_version(content) for content in unchanged} == {1}
    shifted = dataset_of(stored_HW << 4, HighBit=15)
    wide = dataset_of(stored_HW.astype(np.uint32), bits_stored=32)
    deep = dataset_of(np.stack([stored_HW] * 3, axis=-1), PhotometricInterpretation="RGB", PlanarConfiguration=0)
    changed = [
        encoded(dataset_of(stored_HW, PixelPaddingValue=0)),
        encoded(dataset_of(stored_HW, VOILUTSequence=[table(np.arange(4096))])),
        encoded(dataset_of(stored_HW, ModalityLUTSequence=[table(np.arange(4096))])),
        *map(encoded, (wide, deep)),
        deep_png(np.stack([stored_HW] * 3, axis=-1), 2),
        deep_png(stored_HW[..., None], 0, [(b"tRNS", b"\0\0")]),
        encode(Image.fromarray(film_HW), "WEBP"),
    ]
    stated_rgb = dataset_of(colours_HWC, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    changed.append(compressed(tmp_path, stated_rgb, "JPEGBaselineProcess1"))
    grey = dataset_of(stored_HW, bits_stored=16)
    changed.append(compressed(tmp_path, grey, "JPEGExtendedProcess2_4"))
    assert [reader_version(content) for content in changed] == [2] * len(changed)
    large_HW = np.tile(stored_HW, (10, 10))
    large = [encode(Image.fromarray(large_HW)), encode(Image.fromarray(np.tile(film_HW, (10, 10))), "JPEG")]
    large += [encoded(dataset_of(large_HW)), nifti(large_HW), gzip.compress(nifti(large_HW))]
    assert [reader_version(content) for content in large] == [3] * len(large)
    assert [reader_versions(content) for content in large] == [0b101] * 5
    precise = compressed(tmp_path, grey, "JPEG2000Lossless")
    assert reader_version(precise) == 1
    newest = [encode(Image.fromarray(film_HW), kind) for kind in ("TIFF", "JPEG2000")]
    newest += [
        encoded(dataset_of(stored_HW, **elements))
        for elements in (
            {"RescaleSlope": 2},
            {"RescaleSlope": None, "RescaleIntercept": None},
            {"RescaleSlope": " ", "RescaleIntercept": 0},
            {"WindowWidth": [0, 4096], "WindowCenter": [0, 2048]},
            {"WindowWidth": [4096, 4096], "WindowCenter": [None, 2048]},
            {"VOILUTFunction": "IDENTITY"},
        )
    ]
    newest.append(encoded(dataset_of(colours_HWC, PhotometricInterpretation="RGB")))
    for missing in ("BitsStored", "PixelRepresentation"):
        incomplete = dataset_of(stored_HW)
        delattr(incomplete, missing)
        newest.append(encoded(incomplete))
    stored = b"\x28\x00\x01\x01US\x02\x00"
    newest += [encoded(shifted), precise.replace(stored + b"\x10", stored + b"\x0c"), extended_nifti(film_HW.T)]
    assert [reader_version(content) for content in newest] == [NEWEST_READER] * len(newest)
    unsearched = [
        compressed(tmp_path, grey, syntax) for syntax in ("ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian")
    ]
    unsearched.append(encoded(in_floats(stored_HW, "FloatPixel")))
    assert [reader_versions(content) for content in unsearched] == [0b1111] * 3
    still = [encode(Image.fromarray(np.tile(film_HW, (10, 10)))), nifti(np.tile(film_HW, (10, 10)))]
    assert [reader_version(content) for content in still] == [1] * len(still)


def test_the_reader_of_a_file_that_is_cut_off_anywhere_is_known(stored_HW):
    for content in (encode(Image.fromarray(stored_HW)), encoded(dataset_of(stored_HW)), nifti(stored_HW)):
        assert {reader_version(content[:length]) for length in range(600)} <= {1, 2, 3, NEWEST_READER}
