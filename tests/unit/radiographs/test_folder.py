import gzip
import lzma

import pytest
from PIL import Image

from csi_job.errors import DataError
from csi_job.radiographs.folder import expand_folders
from tests.support.dicom import dataset_of, encoded
from tests.unit.radiographs.conftest import encode

APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(100)


@pytest.fixture
def folder(tmp_path, stored_HW):
    """A folder as it comes from an archive: with and without endings, and with what systems leave behind."""
    dicom = encoded(dataset_of(stored_HW))
    meta_end = 144 + int.from_bytes(dicom[140:144], "little")
    index = bytes(128) + b"DICM" + b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10"
    files = {
        "DICOM/S1/I1": dicom,
        "DICOM/S1/1.2.840.113619.2": dicom,
        "DICOM/S1/bare": dicom[meta_end:],
        "picture": encode(Image.fromarray(stored_HW)),
        "named.PNG": b"torn",
        "volume.nii.gz": gzip.compress(b"x"),
        "volume": gzip.compress(bytes(344) + b"n+1\0" + bytes(4000)),
        "films.zip": b"PK\x03\x04",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "film.dcm.gz": gzip.compress(dicom),
        "film.dcm.xz": lzma.compress(dicom),
        "DICOMDIR": index,
        "copy of DICOMDIR": index,
        "notes.txt": b"some text",
        "empty": b"",
        ".DS_Store": b"\0\0\0\1Bud1",
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "._named.PNG": APPLE_DOUBLE,
        "__MACOSX/named.PNG": b"torn",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("DICOM")
    return tmp_path


def test_images_are_found_by_ending_and_by_content_and_the_rest_is_counted(folder, logged):
    found = expand_folders([folder / "notes.txt", folder, folder / "Thumbs.db", folder / "missing"])
    names = [path.relative_to(folder).as_posix() for path in found]
    dicom = ["DICOM/S1/1.2.840.113619.2", "DICOM/S1/I1", "DICOM/S1/bare"]
    assert names == ["notes.txt", *dicom, "named.PNG", "picture", "volume", "volume.nii.gz", "missing"]
    assert "found 7 images; skipped 12 of 19 entries: " in logged.text
    packed = ("compressed with gzip", "compressed with xz", "an archive (ZIP, RAR or 7z)")
    kinds = (*packed, "a Git LFS pointer")
    skipped = ["3 metadata of the system", "3 not an image", "1 DICOM index", "1 link to a folder"]
    for reason in (*skipped, *(f"1 not an image but {kind}" for kind in kinds)):
        assert reason in logged.text
    assert "notes" not in logged.text


def test_folders_and_files_without_any_image_are_refused(folder):
    (folder / "none").mkdir()
    (folder / "none" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no image \(found 0 images; skipped 1 of 1 entry: 1 not"):
        expand_folders([folder, folder / "none"])
    with pytest.raises(DataError, match="none of the files is an image"):
        expand_folders([folder / "._named.PNG"])
