import io
import itertools
import re
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from csi_job.errors import DataError
from csi_job.radiographs.read import read_radiograph
from tests.support.dicom import compressed, dataset_of, encoded
from tests.unit.radiographs.conftest import encode, put, square, stretched
from tests.unit.radiographs.test_dicom import ALL_LEVELS, MAX_SIDE_PX, read

SAMPLES, ROWS, STORED = b"\x28\0\x02\0", b"\x28\0\x10\0", b"\x28\0\x01\x01"  # tags of 16-bit numbers
PRIVATE_SYNTAX = b"1.2.840.113619.5.2\0\0"
LOSSLESS = ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]


@pytest.mark.parametrize("disguise", ["none", "false group length", "padding before the transfer syntax"])
def test_a_deflate_bomb_is_refused_without_the_memory_it_asks_for(stored_HW, disguise, monkeypatch):
    dataset = dataset_of(stored_HW, syntax=DeflatedExplicitVRLittleEndian)
    if disguise.startswith("padding"):
        dataset.file_meta.FileMetaInformationVersion = bytes(100_000)
    content = encoded(dataset)
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    if disguise.startswith("false"):
        content = content[:140] + bytes(4) + content[144:]
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    zeros = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)  # can be repeated
    bomb = content[:meta_end] + 64 * zeros
    monkeypatch.setattr("csi_job.radiographs.dicom_file._MAX_INFLATED_BYTES", 1 << 20)
    tracemalloc.start()
    with pytest.raises(DataError, match="inflates to more than a radiograph"):
        read(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20  # of the 64 MiB that it inflates to
    tracemalloc.stop()


def test_a_deflated_file_that_is_cut_off_is_refused(stored_HW):
    dataset = dataset_of(stored_HW, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(DataError, match="cut off"):
        read(encoded(dataset)[:-100])


@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_bytes_after_the_pixels_of_a_deflated_file_are_ignored_and_cost_nothing(stored_HW, square_HW, byte):
    content = encoded(dataset_of(stored_HW, syntax=DeflatedExplicitVRLittleEndian, **ALL_LEVELS))
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    padded = zlib.decompress(content[meta_end:], -zlib.MAX_WBITS) + 10_000_000 * byte
    content = content[:meta_end] + deflater.compress(padded) + deflater.flush()
    start = time.process_time()
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1
    assert time.process_time() - start < 1


def stating(content: bytes, tag: bytes, number: int) -> bytes:
    """Let the header of a file state another number."""
    place = content.index(tag + b"US\x02\0") + 8
    return content[:place] + number.to_bytes(2, "little") + content[place + 2 :]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_pixels_of_another_size_or_colour_than_declared_are_rejected(tmp_path, stored_HW, syntax):
    content = compressed(tmp_path, dataset_of(stored_HW), syntax)
    with pytest.raises(DataError, match="pixel data are 90x120, but the DICOM header says 90x64"):
        read(stating(content, ROWS, 64))
    rgb = dataset_of(np.stack([stored_HW] * 3, axis=-1), PlanarConfiguration=0, PhotometricInterpretation="RGB")
    lying = stating(compressed(tmp_path, rgb, syntax), SAMPLES, 1).replace(b"CS\x04\0RGB ", b"CS\x0c\0MONOCHROME2 ")
    with pytest.raises(DataError, match="pixel data have 3 channels, but the DICOM header says 1"):
        read(lying)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("tables", [{}, {"WindowCenter": 32768, "WindowWidth": 65536}], ids=["percentile", "window"])
@pytest.mark.parametrize("overlay", [False, True])
def test_compressed_pixels_have_the_bits_that_they_say_and_no_fewer(tmp_path, film_HW, syntax, tables, overlay):
    """Unless an overlay is in the others."""
    levels_HW = film_HW.astype(np.uint16) * 257
    if overlay:
        levels_HW, tables = film_HW.astype(np.uint16) * 16 + 0x8000, ALL_LEVELS
    dataset = dataset_of(levels_HW, bits_stored=16, **tables)
    if overlay:
        dataset.add_new((0x6000, 0x0102), "US", 15)
    content = stating(compressed(tmp_path, dataset, syntax), STORED, 12)
    expected_HW = square(film_HW if tables else stretched(film_HW))
    assert np.abs(read(content).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_pixels_of_more_bits_than_are_allocated_are_read(tmp_path, stored_HW, square_HW, syntax):
    content = compressed(tmp_path, dataset_of(stored_HW, **ALL_LEVELS), syntax)
    for tag in (b"\x28\0\x00\x01", STORED):
        content = stating(content, tag, 8)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def wrapped(levels_HW: np.ndarray, syntax: UID, parts: list[bytes], offsets: bytes = b"", **elements: object) -> bytes:
    dataset = dataset_of(levels_HW, 16, syntax, **elements)
    items = b"".join(b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in (offsets, *parts))
    dataset.PixelData, dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = items, "OB", True
    return encoded(dataset)


@pytest.mark.parametrize(
    "offsets", [b"", bytes(4), (1234).to_bytes(4, "little"), bytes(4) + (99).to_bytes(4, "little")]
)
@pytest.mark.parametrize("num_fragments", [1, 3])
def test_fragments_are_joined_whatever_the_table_of_their_offsets_says(stored_HW, square_HW, offsets, num_fragments):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    stream += bytes(-len(stream) % 6)
    length = len(stream) // num_fragments
    parts = [stream[start : start + length] for start in range(0, len(stream), length)]
    content = wrapped(stored_HW, JPEG2000Lossless, parts, offsets, **ALL_LEVELS)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def test_compressed_pixels_are_held_three_times_at_most(film_HW):
    stream = encode(Image.fromarray(film_HW), "JPEG") + bytes(10_000_000)
    content = wrapped(film_HW, JPEGBaseline8Bit, [stream], **SHALLOW)
    tracemalloc.start()
    read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * len(content)  # and once more as the content itself


@pytest.mark.parametrize("syntax", LOSSLESS[1:])
@pytest.mark.parametrize("end", [b"", b"\0", bytes(1000)])
def test_compressed_pixels_without_their_end_marker_are_read_if_they_are_complete(tmp_path, stored_HW, syntax, end):
    content = compressed(tmp_path, dataset_of(stored_HW, **ALL_LEVELS), syntax)
    dataset = dcmread(io.BytesIO(content))
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    complete, ended = stream.rstrip(b"\0").removesuffix(b"\xff\xd9"), dataset.file_meta.TransferSyntaxUID
    assert len(complete) <= len(stream) - 2
    assert np.array_equal(read(wrapped(stored_HW, ended, [complete + end], **ALL_LEVELS)), read(content))
    for share in (0.3, 0.6, 0.9, 0.98):
        cut = complete[: round(share * len(complete))]
        with pytest.raises(RuntimeError, match=r"[Uu]nable to decode"):
            read(wrapped(stored_HW, ended, [cut + bytes(len(complete) - len(cut)) * len(end)], **ALL_LEVELS))


def jpeg_streams(folder: Path, film_HW: np.ndarray) -> Iterator[tuple[UID, bytes, dict[str, int]]]:
    """Yield JPEG of every kind, which decoders fill up where it is cut off, with syntax and other elements."""
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 1}):
        yield JPEGBaseline8Bit, encode(Image.fromarray(film_HW), "JPEG", **options), SHALLOW
    for syntax in ("JPEGExtendedProcess2_4", LOSSLESS[0]):
        dataset = dcmread(io.BytesIO(compressed(folder, dataset_of(film_HW * np.uint16(16)), syntax)))
        yield dataset.file_meta.TransferSyntaxUID, get_frame(dataset.PixelData, 0, number_of_frames=1), ALL_LEVELS


@pytest.mark.filterwarnings("ignore:End of file reached before delimiter")
def test_jpeg_that_is_cut_off_anywhere_is_refused(tmp_path, film_HW):
    for syntax, stream, elements in jpeg_streams(tmp_path, film_HW):
        whole = wrapped(film_HW, syntax, [stream], **elements)
        read(whole)
        restarts = [found.start() for found in re.finditer(rb"\xff[\xc4\xd0-\xda]", stream)][-1:0:-9]
        for kept in (*(round(share * len(stream)) for share in (0.3, 0.6, 0.9, 0.98)), *restarts):
            cut = stream[: max(kept, 700)]
            for content in (
                wrapped(film_HW, syntax, [cut], **elements),
                wrapped(film_HW, syntax, [cut + bytes(len(stream) - len(cut))], **elements),
                wrapped(film_HW, syntax, [cut + bytes(10 * len(stream))], **elements),
                whole[: whole.index(cut) + len(cut)],
            ):
                with pytest.raises(DataError, match="cut off"):
                    read(content)


def test_a_stream_that_is_signed_is_read_so_whatever_the_header_says(stored_HW, square_HW):
    stream = bytearray(encode(Image.fromarray(stored_HW + np.uint16(32768 - 2048)), "JPEG2000", no_jp2=True))
    stream[42] |= 0x80  # the same numbers, less 32768
    content = wrapped(stored_HW, JPEG2000Lossless, [bytes(stream)], WindowCenter=0, WindowWidth=4096)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def run_lengths(film_HW: np.ndarray) -> bytes:
    dataset = dataset_of(film_HW)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    return get_frame(dataset.PixelData, 0)


STREAMS = {
    "JPEG": lambda film_HW: encode(Image.fromarray(film_HW), "JPEG", quality=98),
    "progressive JPEG": lambda film_HW: encode(Image.fromarray(film_HW), "JPEG", quality=98, progressive=True),
    "JPEG 2000": lambda film_HW: encode(Image.fromarray(film_HW), "JPEG2000", no_jp2=True),
    "run lengths": run_lengths,
    "none": bytes,
}
SHALLOW = {"BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "stated",
    [
        *(ExplicitVRLittleEndian, UID("1.2.840.10008.1.2.1.98"), JPEGBaseline8Bit, JPEGExtended12Bit),
        *(UID("1.2.840.10008.1.2.4.55"), JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2K, RLELossless),
    ],
    ids=lambda syntax: syntax.name,
)
def test_the_pixels_tell_how_they_are_compressed_whatever_the_header_says(film_HW, square_HW, stream, stated):
    content = restated(wrapped(film_HW, JPEG2000, [STREAMS[stream](film_HW)], **SHALLOW), JPEG2000, stated)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 2


@pytest.mark.filterwarnings("ignore:The pixel data is 21602 bytes long")
@pytest.mark.parametrize("stated", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("padding", [b"", bytes(2)])
def test_uncompressed_pixels_are_read_whatever_compression_the_header_says(stored_HW, square_HW, stated, padding):
    dataset = dataset_of(stored_HW, **ALL_LEVELS)
    dataset.PixelData += padding
    content = restated(encoded(dataset), ExplicitVRLittleEndian, stated)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize(("syntax", "stated"), [*itertools.permutations(PLAIN, 2)])
def test_the_first_element_tells_the_encoding_whatever_the_header_says(stored_HW, square_HW, syntax, stated):
    content = restated(encoded(dataset_of(stored_HW, syntax=syntax, **ALL_LEVELS)), syntax, stated)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


@pytest.mark.filterwarnings("ignore:Expected implicit VR")
@pytest.mark.parametrize("syntax", PLAIN)
@pytest.mark.parametrize("end", [b"", bytes(1000), b"\xff" * 1000])
def test_elements_before_which_others_belong_are_read(stored_HW, square_HW, syntax, end):
    content = encoded(dataset_of(stored_HW, syntax=syntax, **ALL_LEVELS))
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    meta, elements = content[:meta_end], content[meta_end:]
    pixels = elements.index(b"\x7f\xe0\x00\x10" if syntax == ExplicitVRBigEndian else b"\xe0\x7f\x10\x00")
    field = b"\0\0\0\1" + (2).to_bytes(4, "little") + b"\1\0"  # what was asked of the receiver
    for commands in (b"UL\4\0\4\0\0\0", b"\4\0\0\0" + len(field).to_bytes(4, "little") + field):
        assert np.abs(read(meta + bytes(4) + commands + elements + end).astype(int) - square_HW).max() <= 1
    pixels_first = meta + elements[pixels:] + elements[:pixels] + end
    assert np.abs(read(pixels_first).astype(int) - square_HW).max() <= 1


def restated(content: bytes, syntax: UID, stated: UID) -> bytes:
    """Let the meta information of a file state another transfer syntax."""
    old, new = (
        b"UI" + (len(name) + len(name) % 2).to_bytes(2, "little") + name.encode() + bytes(len(name) % 2)
        for name in (syntax, stated)
    )
    length = int.from_bytes(content[140:144], "little") + len(new) - len(old)
    return (
        content[:140]
        + length.to_bytes(4, "little")
        + content[144:].replace(b"\x02\0\x10\0" + old, b"\x02\0\x10\0" + new)
    )


@pytest.mark.filterwarnings("ignore:End of file reached before delimiter")
@pytest.mark.parametrize(
    ("is_delimited", "end"),
    [(True, b""), (True, bytes(1000)), (True, b"\xff" * 1000), (False, b""), (False, bytes(8)), (False, bytes(1000))],
)
@pytest.mark.parametrize("has_table", [True, False])
def test_whatever_follows_the_pixels_is_ignored(stored_HW, square_HW, is_delimited, end, has_table):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    content = wrapped(stored_HW, JPEG2000, [stream + bytes(len(stream) % 2)], **ALL_LEVELS)
    if not has_table:
        content = content.replace(b"\xfe\xff\x00\xe0" + bytes(4), b"")
    if not is_delimited:
        content = content.removesuffix(b"\xfe\xff\xdd\xe0" + bytes(4))
    assert np.abs(read(content + end).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2K])
def test_high_throughput_jpeg_2000_is_decoded_as_jpeg_2000(stored_HW, square_HW, syntax):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    content = wrapped(stored_HW, syntax, [stream + bytes(len(stream) % 2)], **ALL_LEVELS)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("preamble", [b"", bytes(128) + b"DICM", b"II*\0" + bytes(124) + b"DICM"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_meta_information_is_read(tmp_path, stored_HW, square_HW, preamble, syntax):
    if syntax == ExplicitVRBigEndian and not preamble:
        pytest.skip("nothing shows that it is DICOM")
    content = encoded(dataset_of(stored_HW, syntax=syntax, **ALL_LEVELS))
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    path = put(tmp_path, preamble + content[meta_end:])
    assert np.abs(read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX).astype(int) - square_HW).max() <= 1


def test_errors_about_damaged_files_do_not_name_the_patient(tmp_path, stored_HW):
    content = encoded(dataset_of(stored_HW, NumberOfFrames=10_000_001))
    assert b"10000001" in content
    path = put(tmp_path, content.replace(b"10000001", b"DOE^JANE"))
    with pytest.raises(DataError, match="the image is damaged") as caught:
        read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)
    assert "JANE" not in str(caught.value)


def test_a_transfer_syntax_that_runs_into_the_patients_name_does_not_show_it(stored_HW):
    content = encoded(dataset_of(stored_HW, PatientName="DOE^JANE")).replace(b"1.2.840.10008.1.2.1\0", PRIVATE_SYNTAX)
    start, end = content.index(PRIVATE_SYNTAX), content.index(b"DOE^JANE") + 8
    damaged = content[: start - 2] + (end - start).to_bytes(2, "little") + content[start:]
    with pytest.raises(DataError, match=r"of transfer syntax \(damaged\) cannot be decoded"):
        read(damaged)


def test_a_transfer_syntax_that_nothing_decodes_is_named(stored_HW):
    content = encoded(dataset_of(stored_HW)).replace(b"1.2.840.10008.1.2.1\0", PRIVATE_SYNTAX)
    with pytest.raises(DataError, match=r"of transfer syntax 1.2.840.113619.5.2 cannot be decoded; convert the file"):
        read(content)


def test_compressed_pixels_that_are_cut_off_are_refused_without_naming_decoders(tmp_path, stored_HW):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    path = put(tmp_path, wrapped(stored_HW, JPEG2000Lossless, [stream[: len(stream) // 4 * 2]]))
    with pytest.raises(DataError, match=r"the image is damaged \(its compressed pixels cannot be decoded\)"):
        read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)


def code(meaning: str) -> Dataset:
    item = Dataset()
    item.CodeMeaning = meaning
    return item


def rescaled(stored_HW: np.ndarray, slope: str) -> Dataset:
    dataset = dataset_of(stored_HW, syntax=ImplicitVRLittleEndian)
    dataset.add(DataElement("RescaleSlope", "LO", slope))
    return dataset


def test_files_without_one_radiograph_are_refused(stored_HW):
    report = dataset_of(stored_HW, Modality="SR")
    del report.PixelData
    swallowing = deepcopy(report)
    swallowing.add(DataElement("Modality", "LO", "DX\x10\0\x10\0PN\b\0Doe^Jane"))
    frames = dataset_of(stored_HW, NumberOfFrames=2)
    frames.PixelData *= 2
    unnamed = dataset_of(stored_HW, PhotometricInterpretation=None, SamplesPerPixel=None)
    for dataset, words in (
        (report, "no pixels, or is cut off, got 'Modality SR'"),
        (swallowing, r"or is cut off, got 'Modality \(damaged\)'"),
        (frames, "several frames, got 2"),
        (dataset_of(stored_HW, Rows=60_000), "90x60000 pixels"),
        (unnamed, "the DICOM file lacks SamplesPerPixel, PhotometricInterpretation"),
        (dataset_of(stored_HW, SamplesPerPixel=4), "neither grey nor RGB, got 'MONOCHROME2 with 4 samples per pixel'"),
        (dataset_of(stored_HW, PhotometricInterpretation="RGB"), "neither grey nor RGB"),
        (dataset_of(np.stack([stored_HW] * 3, axis=-1), PhotometricInterpretation="HSV"), "neither grey nor RGB"),
        (
            dataset_of(stored_HW, Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]),
            "is not a radiograph, got 'Modality CT'",
        ),
        (rescaled(stored_HW, "1,5"), "RescaleSlope in the DICOM file is not a number, got '1,5'"),
        (rescaled(stored_HW, "NaN"), "RescaleSlope in the DICOM file is not a number, got 'NaN'"),
        (dataset_of(stored_HW, ViewPosition="LL"), "the film is lateral, .* got 'ViewPosition LL'"),
        (dataset_of(stored_HW, ViewPosition="LL\t"), "the film is lateral, .* got 'ViewPosition LL'"),
        (dataset_of(stored_HW, ViewPosition="LLAT"), "the film is lateral, .* got 'ViewPosition LLAT'"),
        (
            dataset_of(stored_HW, ViewCodeSequence=[code("Left lateral projection")]),
            "the film is lateral, .* got 'ViewCodeSequence LEFT LATERAL PROJECTION'",
        ),
        (
            dataset_of(stored_HW, ViewCodeSequence=[code("seitlich")], PatientOrientation=["A", "F"]),
            "the film is lateral, .* got 'PatientOrientation AF'",
        ),
        (dataset_of(stored_HW, ViewPosition="XTABLE LATERAL"), "got 'ViewPosition XTABLE LATERAL'"),
        (dataset_of(stored_HW, PatientOrientation=["H", "A"]), "got 'PatientOrientation HA'"),
        (dataset_of(stored_HW, PatientOrientation=["P", "F"]), "the film is lateral, .* got 'PatientOrientation PF'"),
    ):
        with pytest.raises(DataError, match=words):
            read(encoded(dataset))
