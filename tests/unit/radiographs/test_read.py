import bz2
import gzip
import os
import struct
import tarfile
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, RLELossless

from csi_job.errors import DataError
from csi_job.phantoms.files import NUM_VARIANTS, write_film
from csi_job.radiographs.read import find_images, read_radiograph, silence_decoders
from tests.support.cost import cost_of
from tests.support.dicom import dataset_of, encoded
from tests.unit.radiographs.conftest import encode, put
from tests.unit.radiographs.test_picture import deep_png

MAX_SIDE_PX = 4000


def find(folder: Path, *file_ids: str) -> tuple[Path, ...]:
    return tuple(map(Path, find_images(folder, file_ids, range(2, 2 + len(file_ids)))))


def problem(folder: Path, *file_ids: str) -> str:
    with pytest.raises(DataError) as caught:
        find(folder, *file_ids)
    assert "\n" not in caught.value.render(identities=True)
    return caught.value.problems[-1].what


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)
    assert path.name not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "B.JPG", "c.d.nii.gz", "sub/e.dcm", "plain", "f.txt"):
        (images / name).write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    return images


def test_images_are_found_with_and_without_extension_of_any_case_and_composed_in_any_way(folder):
    (folder / "o\u0308").mkdir()
    for name in ("e\u0301.png", "o\u0308/u\u0308.png"):
        (folder / name).write_bytes(b"x")
    found = find(folder, "a", "B.JPG", "c.d", "sub/e", "plain", "\u00e9", "\u00f6/\u00fc")
    names = ["a.png", "B.JPG", "c.d.nii.gz", "e.dcm", "plain", "e\u0301.png", "u\u0308.png"]
    assert [path.name for path in found] == names


def test_missing_images_are_all_listed_and_a_missing_folder_is_an_error(folder):
    with pytest.raises(DataError, match="2 of 3 images cannot be used") as caught:
        find(folder, "a", "missing", "f")
    assert [(problem.row, problem.file_id) for problem in caught.value.problems] == [(3, "missing"), (4, "f")]
    with pytest.raises(DataError, match="the folder of images cannot be read"):
        find(folder / "none", "a")


@pytest.mark.parametrize(
    "file_id",
    [
        *("../secret", "sub/../../secret", "/etc/passwd", "C:\\x", "C:x"),
        *("..\\secret", "\\\\host\\x", "//host/x", ".", ".."),
    ],
)
def test_identifiers_that_leave_the_folder_are_refused(folder, file_id):
    assert problem(folder, file_id) == "the FileID leaves the folder of images"
    assert problem(folder, "sub\\b") == "a backslash in the FileID; write sub-folder/name"


def test_links_are_followed_only_within_the_folder_which_may_be_one_itself(folder, tmp_path):
    (folder / "inside.png").symlink_to("a.png")
    (folder / "outside.png").symlink_to(tmp_path / "secret.png")
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "out").symlink_to(tmp_path)
    assert find(folder, "inside")[0].name == "inside.png"
    leaving = "a link that leaves the folder of images; copy what it links to into the folder"
    assert problem(folder, "outside") == leaving
    behind = (
        "its sub-folder is behind a link that leaves the folder of images; replace the link by a copy of its target"
    )
    assert problem(folder, "out/secret") == problem(folder, "out/none") == behind
    assert problem(folder, "sub/secret") == problem(folder, "none/secret") == "no image of this name"
    assert problem(folder, "broken") == problem(folder, "loop") == "a broken link"
    (tmp_path / "linked").symlink_to(folder)
    assert find(tmp_path / "linked", "a")[0].name == "a.png"


def test_two_files_for_one_identifier_and_one_file_for_two_are_refused(folder):
    (folder / "a.dcm").write_bytes(b"x")
    assert problem(folder, "a") == "several images of this name (.dcm, .png)"
    assert find(folder, "a.png")[0].name == "a.png"
    assert problem(folder, "plain", "a.png", "a.png") == "same image as row 3"


def test_an_identifier_without_sub_folder_means_the_only_image_of_this_name_below(folder):
    assert find(folder, "e")[0] == folder / "sub" / "e.dcm"
    (folder / "sub" / "__MACOSX").mkdir()
    for name in ("sub/__MACOSX/e.dcm", "sub/._e.dcm", "._a.png"):
        (folder / name).write_bytes(b"x")
    assert find(folder, "e", "a")[0] == folder / "sub" / "e.dcm"
    (folder / "other").mkdir()
    (folder / "other" / "e.png").write_bytes(b"x")
    assert "but 2 in its sub-folders; write the sub-folder in the FileID" in problem(folder, "e")
    assert find(folder, "other/e")[0].name == "e.png"


def test_an_image_of_a_newer_kind_beside_one_of_the_first_is_not_meant(folder):
    for name in ("a.tif", "only.tif"):
        (folder / name).write_bytes(b"x")
    assert [path.name for path in find(folder, "a", "a.tif", "only")] == ["a.png", "a.tif", "only.tif"]


@pytest.mark.parametrize(
    ("file_id", "meant"),
    [
        ("12", "00012"),
        ("12.PNG", "00012"),
        ("1,23457E+11", "123456789012"),
        ("1.23457e+11", "123456789012"),
        ("987654321098765000", "987654321098765432"),
        ("987654321098765440", "987654321098765432"),
    ],
)
def test_what_a_spreadsheet_made_of_an_identifier_is_said_with_what_it_may_be(folder, file_id, meant):
    for name in ("00012.png", "sub/123456789012.dcm", "987654321098765432.png", "13.png"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        find(folder, file_id)
    message = caught.value.render(identities=True)
    assert "a spreadsheet dropped its zeros or digits" in message
    assert message.endswith(f"it may be {meant}")
    assert meant not in caught.value.render(identities=False)


@pytest.mark.parametrize(
    ("file_id", "meant"),
    [
        *[("A", "a.png"), ("b.png", "B.JPG"), ("sub/a", "a.png"), ("set/E.jpg", "sub/e.dcm")],
        *[("a\u200b", "a.png"), ("\ufeffa.png", "a.png"), ("FILM\u00a07.tif", "film 007.png")],
    ],
)
def test_an_image_with_another_ending_folder_or_spelling_is_named(folder, file_id, meant):
    (folder / "film 007.png").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        find(folder, file_id)
    message = caught.value.render(identities=True)
    why = "no image of this name, except with another extension, folder or spelling"
    assert message.endswith(f"{why}; it may be {meant}")
    assert meant not in caught.value.render(identities=False)


@pytest.mark.parametrize("file_id", ["sub", "x" * 300, "no/such/folder/x", "sub/", "f"])
def test_a_file_that_is_not_an_image_is_missing(folder, file_id):
    assert problem(folder, file_id) == "no image of this name"


@pytest.mark.parametrize("variant", range(NUM_VARIANTS))
def test_every_phantom_format_is_read_alike_whatever_the_file_name(tmp_path, film_HW, square_HW, variant):
    write_film(film_HW.astype(np.float32) / 255, tmp_path / "film", variant)
    (path,) = tmp_path.iterdir()
    pixels_HW = read_radiograph(path.rename(tmp_path / "misnamed.txt"), 32, max_image_side_px=MAX_SIDE_PX)
    assert pixels_HW.shape == (32, 32)
    assert pixels_HW.dtype == np.uint8
    slope, offset = np.polyfit(square_HW.ravel(), pixels_HW.ravel(), 1)
    assert 0.9 < slope < 2  # deep files may be stretched to their percentiles
    assert np.abs(slope * square_HW + offset - pixels_HW)[1:-1, 1:-1].max() < 12


def test_a_file_that_is_not_an_image_is_refused_in_one_line(tmp_path, stored_HW):
    png = encode(Image.new("L", (64, 64)))
    torn = encoded(dataset_of(stored_HW))[:-15_700]
    false = dataset_of(stored_HW, syntax=JPEG2000)
    false.PixelData = encapsulate([png])
    cases = {
        "empty": (b"", "empty"),
        "text": (b"this is no image" * 40, "the file is not an image: PNG,"),
        "gzip": (gzip.compress(b"no image" * 4000), "the gzip file is not a NIfTI image; unpack it with gunzip or tar"),
        "bzip2": (bz2.compress(png), "the file is compressed with bzip2; unpack it with bunzip2 or tar"),
        "tar": (tarfile.TarInfo("film.png").tobuf(), "the file is a tar archive; unpack it"),
        "torn gzip": (gzip.compress(b"no image" * 99)[:15], "the gzip file is cut off"),
        "torn header": (png[:20], "damaged"),
        "torn DICOM": (torn, "(5900 vs 21600 bytes) - the dataset may be corrupted, have an …)"),
        "false syntax": (encoded(false), "the image is damaged (its compressed pixels cannot be decoded)"),
        "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "the file is a Git LFS pointer; run `git"),
        "PDF": (b"%PDF-1.7", "the file is a PDF document"),
        "HEIC": (b"\0\0\0\x18ftypheic", "the file is a HEIC picture; convert it to PNG"),
        "7z": (b"7z\xbc\xaf\x27\x1c", "the file is an archive (ZIP, RAR or 7z); unpack it"),
        "NIfTI pair": (bytes(344) + b"ni1\0", "the header of a NIfTI pair; convert it and its .img to one .nii file"),
        "NIfTI-2 pair": (bytes(4) + b"ni2\0", "the header of a NIfTI pair; convert it and its .img to one .nii file"),
        "MetaImage": (b"ObjectType = Image\nNDims = 2\n", "an NRRD or MetaImage; convert it to NIfTI"),
        "PGM": (b"P5\n90 120\n255\n", "a PNM or JPEG XL picture; convert it to PNG"),
        "macOS": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "the file is metadata of macOS"),
        "HTML": (b"\n<!DOCTYPE HTML>", "the file is a web page, or XML; download the image"),
        "blank": (encode(Image.new("L", (64, 64), 7)), "all pixels of the image are equal"),
    }
    for name, (content, words) in cases.items():
        assert words in refusal(put(tmp_path, content, f"patient {name}.png"))


def test_what_is_no_file_and_a_huge_one_are_refused_without_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a file" in refusal(tmp_path / "pipe.png")
    assert "not a file" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "missing.png")
    (tmp_path / "link.png").symlink_to("missing.png")
    assert "the image is a broken link" in refusal(tmp_path / "link.png")
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 3 << 30)
    assert "bytes; allowed" in refusal(tmp_path / "huge.png")


def test_sizes_are_checked_before_pixels_are_decoded(tmp_path):
    def bomb(width, height):
        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    assert "4001x20 pixels" in refusal(put(tmp_path, bomb(4001, 20)))
    assert "more pixels than any radiograph" in refusal(put(tmp_path, bomb(60_000, 60_000)))
    assert "1x1 pixels; allowed: at least 16" in refusal(put(tmp_path, encode(Image.new("L", (1, 1)))))


@pytest.fixture(scope="module")
def largest(tmp_path_factory):
    """The cost of the largest radiograph allowed, in 16-bit colours."""
    levels_HWC = np.zeros((MAX_SIDE_PX, MAX_SIDE_PX, 3), np.uint16)
    levels_HWC[::2, ::3] = 40_000
    path = put(tmp_path_factory.mktemp("largest"), deep_png(levels_HWC, 2))
    return cost_of(lambda: read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX))


STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"RIFF\0\0\0\0WEBP", b"GIF89a"]
STARTS += [b"\x1f\x8b\x08\x00", bytes(128) + b"DICM", b"\x08\x00\x05\x00"]


@settings(max_examples=200)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=600))
def test_any_bytes_give_an_image_or_a_data_error_at_little_cost(tmp_path, largest, start, rest):
    path = put(tmp_path, start + rest)

    def read():
        with suppress(DataError):
            read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)

    assert cost_of(read).is_within(largest)


@settings(max_examples=300)
@given(
    variant=st.integers(0, NUM_VARIANTS - 1),
    edits=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=12),
    kept=st.floats(0, 1),
)
def test_damaged_files_give_an_image_or_a_data_error_and_no_noise(
    tmp_path, film_HW, largest, capfd, variant, edits, kept
):
    for old in tmp_path.iterdir():
        old.unlink()
    write_film(film_HW.astype(np.float32) / 255, tmp_path / "film", variant)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    for place, value in edits:
        content[place % min(len(content), 1000)] = value
    path.write_bytes(content[: max(1, round(len(content) * min(1, 2 * kept)))])
    silence_decoders()

    def read():
        try:
            pixels_HW = read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)
        except DataError as error:
            assert "film" not in str(error).replace("0x", "")
        else:
            assert pixels_HW.shape == (32, 32)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost_of(read).is_within(largest)
    assert capfd.readouterr() == ("", "")


def lying(large_HW: np.ndarray) -> dict[str, bytes]:
    """Large films whose headers lie, or that are cut off, by what is wrong with them."""
    side = struct.pack(">HH", MAX_SIDE_PX, MAX_SIDE_PX)
    size = struct.pack(">8L", MAX_SIDE_PX, MAX_SIDE_PX, 0, 0, MAX_SIDE_PX, MAX_SIDE_PX, 0, 0)
    grey_HW = (large_HW // 16).astype(np.uint8)
    jpeg = encode(Image.fromarray(grey_HW), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    wavelets = encode(Image.fromarray(grey_HW), "JPEG2000", no_jp2=True, irreversible=True)
    levels = wavelets.index(b"\xff\x52") + 9
    deep = encode(Image.fromarray(large_HW), "JPEG2000", no_jp2=True, irreversible=True)
    larger = deep[:8] + size + deep[40:]
    packed = b"\x81\0" * 1_000_000  # 128 zeros each

    def dicom(stream: bytes, syntax: UID, levels_HW: np.ndarray = large_HW, **elements: object) -> bytes:
        dataset = dataset_of(levels_HW, 8 * levels_HW.itemsize, syntax)
        dataset.PixelData, dataset["PixelData"].VR = encapsulate([stream]), "OB"
        for name, value in elements.items():
            setattr(dataset, name, value)
        return encoded(dataset)

    sides = {"Rows": MAX_SIDE_PX, "Columns": MAX_SIDE_PX}
    return {
        "JPEG larger than its data": jpeg[:frame] + side + jpeg[frame + 4 :],
        "JPEG cut off": jpeg[: len(jpeg) // 3],
        "JPEG 2000 larger than its data": wavelets[:8] + size + wavelets[40:],
        "JPEG 2000 cut off": wavelets[: len(wavelets) // 3],
        "JPEG 2000 of 32 levels": wavelets[:levels] + b"\x20" + wavelets[levels + 1 :],
        "JPEG 2000 of 200 levels": wavelets[:levels] + b"\xc8" + wavelets[levels + 1 :],
        "DICOM JPEG larger than its data": dicom(
            jpeg[:frame] + side + jpeg[frame + 4 :], JPEGBaseline8Bit, grey_HW, **sides
        ),
        "DICOM JPEG cut off": dicom(jpeg[: len(jpeg) // 3], JPEGBaseline8Bit, grey_HW),
        "DICOM JPEG 2000 larger than its data": dicom(larger, JPEG2000, **sides),
        "DICOM JPEG 2000 cut off": dicom(deep[: len(deep) // 3], JPEG2000),
        **{
            f"DICOM JPEG 2000 with {bits} bits stored": dicom(deep, JPEG2000, BitsStored=bits)
            for bits in (0, 1, 300, 60_000)
        },
        "DICOM JPEG 2000 with 8 bits allocated": dicom(deep, JPEG2000, BitsAllocated=8, BitsStored=8, HighBit=7),
        "DICOM run lengths of too little": dicom(
            struct.pack("<16L", 2, 64, 70, *[0] * 13) + packed[:200], RLELossless, **sides
        ),
        "DICOM run lengths of too much": dicom(
            struct.pack("<16L", 2, 64, 64, *[0] * 13) + packed, RLELossless, **sides
        ),
        "deep PNG cut off": encode(Image.fromarray(large_HW))[:3000],
    }


def test_large_films_that_lie_cost_no_more_than_the_largest_sound_one(tmp_path, large_HW, largest):
    silence_decoders()
    answers = {}
    for name, content in lying(large_HW).items():
        path = put(tmp_path, content)

        def read(path=path, name=name):
            try:
                answers[name] = f"{read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX).shape}"
            except DataError as error:
                answers[name] = str(error)

        assert cost_of(read).is_within(largest), name
        assert answers[name].startswith(("the image is damaged (", "the image is cut off", "(32, 32)"))
    assert not [name for name in answers if "cut off" in name and answers[name] == "(32, 32)"]
