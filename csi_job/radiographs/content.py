"""What a file is, by its first bytes and not by its name."""

import re
import struct
import zlib
from contextlib import suppress
from typing import NamedTuple

from csi_job.errors import DataError

NUM_MAGIC_BYTES = 1 << 10  # read from a file to find its format
LARGE = 1 << 20  # pixels; larger films are decoded at a fraction of their size, or averaged before tables are applied
CODESTREAM = b"\xff\x4f\xff\x51"  # where JPEG 2000 begins, in a JP2 file too
GIT_LFS_MAGIC = b"version https://git-lfs"
GZIP_MAGIC = b"\x1f\x8b"
_PICTURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|BM.{4}\0{4}|GIF8"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
_BARE_DICOM = re.compile(rb"[\x02\x08]\0")  # the first group of elements of a file without preamble
_BARE_ELEMENT = re.compile(rb"[\x02\x08]\0.\0(?:[A-Z]{2}|.[\0\x01]\0\0)", re.DOTALL)  # the same, and a type or length
_DICOMDIR_CLASS = b"1.2.840.10008.1.3.10"
_PACKED = (  # films or a table may be
    (re.compile(GZIP_MAGIC), "compressed with gzip", "unpack it with gunzip or tar"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "compressed with bzip2", "unpack it with bunzip2 or tar"),
    (re.compile(rb"\xfd7zXZ\0"), "compressed with xz", "unpack it with unxz or tar"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "compressed with Zstandard", "unpack it with unzstd or tar"),
    (re.compile(rb".{257}ustar(?:\0|  \0)", re.DOTALL), "a tar archive", "unpack it"),
)
_OTHERS = (  # what lies among radiographs, and what to do about it
    (re.compile(GIT_LFS_MAGIC), "a Git LFS pointer", "run `git lfs pull`"),
    *_PACKED,
    (re.compile(rb"%PDF"), "a PDF document", ""),
    (re.compile(rb"PK\x03\x04|Rar!|7z\xbc\xaf"), "an archive (ZIP, RAR or 7z)", "unpack it"),
    (
        re.compile(rb".{344}ni1\0|.{4}ni2\0", re.DOTALL),
        "the header of a NIfTI pair",
        "convert it and its .img to one .nii file",
    ),
    (re.compile(rb"NRRD0|ObjectType|NDims"), "an NRRD or MetaImage", "convert it to NIfTI"),
    (re.compile(rb"P[2356]\s|\xff\x0a|\0\0\0\x0cJXL "), "a PNM or JPEG XL picture", "convert it to PNG"),
    (re.compile(rb"\0\x05\x16\x07"), "metadata of macOS", ""),
    (re.compile(rb".{4}ftypavif", re.DOTALL), "an AVIF picture", "convert it to PNG"),
    (re.compile(rb".{4}ftyp(?:hei|mif|msf)", re.DOTALL), "a HEIC picture", "convert it to PNG"),
    (re.compile(rb"8BPS"), "a Photoshop document", "convert it to PNG"),
    (re.compile(rb"\s*<(?:!doctype html|html|\?xml|svg)", re.IGNORECASE), "a web page, or XML", "download the image"),
)
NO_TABLES = (  # what people take for a table, and what to do about it
    (re.compile(GIT_LFS_MAGIC), "a Git LFS pointer and not the table itself", "run `git lfs pull`"),
    *_PACKED,
    (re.compile(rb"PK\x03\x04"), "an Excel, OpenDocument or ZIP file", "save its sheet as CSV, or unpack it"),
    (re.compile(rb"\xd0\xcf\x11\xe0"), "an Excel file of 1997 to 2003", "save its sheet as CSV"),
    (re.compile(rb"PAR1.*PAR1\Z", re.DOTALL), "a Parquet file", "save it as CSV"),
    (re.compile(rb"\s*[\[{]\s*[\[{\"]"), "JSON", "save it as CSV"),
    (re.compile(rb"\s*<[!?a-z]", re.IGNORECASE), "a web page, or XML", "save the table itself as CSV"),
)
_UTF_16 = {  # with its mark, or by the zero bytes of a header in ASCII
    re.compile(rb"\xff\xfe|\xfe\xff"): "utf-16",
    re.compile(rb"[\t-~]\0(?!\0)"): "utf-16-le",
    re.compile(rb"\0[\t-~]"): "utf-16-be",
}
_JPEG_START = b"\xff\xd8"
_JP2_START = b"\0\0\0\x0cjP  "  # before the codestream there may be a long colour profile
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 of JPEG, and that of JPEG-LS
_MARKER_START = re.compile(rb"\xff+")
END_OF_IMAGE = b"\xff\xd9"


def is_picture(start: bytes) -> bool:
    """Return whether a file is a picture that Pillow reads, and not a DICOM file that begins as one does."""
    return bool(_PICTURES.match(start)) and start[128:132] != b"DICM"


def is_nifti(content: bytes) -> bool:
    """Return whether content has the magic number of NIfTI-1 or NIfTI-2 (single file)."""
    return content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0"


def is_dicom(start: bytes) -> bool:
    """Return whether a file has DICOM's preamble, or starts with its first group of elements."""
    return start[128:132] == b"DICM" or bool(_BARE_DICOM.match(start))


def is_image(start: bytes) -> bool:
    """Return whether a file is an image, whatever its name; stricter than `is_dicom` where there is no preamble."""
    has_preamble = start[128:132] == b"DICM"
    if has_preamble or _BARE_ELEMENT.match(start):
        return _DICOMDIR_CLASS not in start
    if start.startswith(GZIP_MAGIC):
        with suppress(zlib.error):
            return is_nifti(zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(start, NUM_MAGIC_BYTES))
    return is_picture(start) or is_nifti(start)


def explain_refusal(start: bytes) -> tuple[str, str]:
    """Return what a file is if it is not an image, and what to do about it."""
    kind, hint = _other_kind(start)
    return f"the file is {kind or 'not an image: PNG, JPEG, TIFF, WebP, BMP, GIF, JPEG 2000, DICOM or NIfTI'}", hint


def why_skipped(start: bytes) -> str:
    """Return why a file without an extension is not taken for an image, or ""."""
    if is_image(start):
        return ""
    kind, _ = _other_kind(start)
    return f"not an image but {kind}" if kind else "not an image"


def _other_kind(start: bytes) -> tuple[str, str]:
    return next(((kind, hint) for magic, kind, hint in _OTHERS if magic.match(start)), ("", ""))


def decoded_text(content: bytes) -> str | None:
    """Return text in UTF-16 or UTF-8, else CP1252, else Latin-1 (which takes any byte); None if it is no text."""
    utf_16 = next((encoding for start, encoding in _UTF_16.items() if start.match(content)), None)
    for encoding in (utf_16,) if utf_16 else ("utf-8-sig", "cp1252", "latin-1"):
        with suppress(UnicodeDecodeError):
            text = content.decode(encoding).lstrip("\ufeff")  # some programs write the mark twice
            return None if "\0" in text else text
    return None


class StreamHeader(NamedTuple):
    """What a JPEG, JPEG-LS or JPEG 2000 stream says of itself."""

    width: int
    height: int
    num_channels: int
    num_bits: int
    place: int  # where the header ends in the stream; of JPEG 2000, where it begins
    marker: int  # SOF0 to SOF15 of JPEG, SOF55 of JPEG-LS, or SOC of JPEG 2000
    is_signed: bool = False


def stream_header(stream: bytes) -> StreamHeader | None:
    """Read the header of compressed pixels, None if they have none; Pillow does not know all of these.

    Raises:
        struct.error: it is cut off.
    """
    if not stream.startswith(_JPEG_START):
        start = stream.find(CODESTREAM, 0, None if stream.startswith(_JP2_START) else NUM_MAGIC_BYTES)
        if start < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">4L", stream, start + 8)
        num_channels, depth = struct.unpack_from(">HB", stream, start + 40)
        num_bits, is_signed = (depth & 0x7F) + 1, depth > 0x7F  # noqa: PLR2004
        return StreamHeader(right - left, bottom - top, num_channels, num_bits, start, CODESTREAM[1], is_signed)
    place = len(_JPEG_START)
    while found := _MARKER_START.match(stream, place):
        place = found.end()
        marker, length, num_bits, height, width, num_channels = struct.unpack_from(">BHBHHB", stream, place)
        place += 1 + length
        if marker in _FRAME_MARKERS:
            return StreamHeader(width, height, num_channels, num_bits, place, marker)
    return None


def lacks_end(stream: bytes, header: StreamHeader) -> bool:
    """Return whether a stream has no end-of-image marker after its header, where a preview has its own."""
    return stream.rfind(END_OF_IMAGE, header.place) < 0


def refuse_cut_jpeg(stream: bytes) -> None:
    """Raise `DataError` for a JPEG without end marker: decoders make up what is missing, so it may be half grey."""
    header = None
    if stream.startswith(_JPEG_START):
        with suppress(struct.error):
            header = stream_header(stream)
    if header is not None and lacks_end(stream, header):
        hint = "copy the file again or, if it is complete, convert it to PNG"
        raise DataError("the image is cut off, or lacks its end marker", hint=hint)
