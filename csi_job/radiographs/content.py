"""What a file is, by its first bytes and not by its name; and which reader last changed its pixels."""

import re
import struct
import zlib
from contextlib import suppress
from math import prod
from typing import NamedTuple

NEWEST_READER = 4  # the current version; an index of digests written by an earlier program is ignored
NUM_START_BYTES = 1 << 20  # read from a file to find its reader's version
NUM_MAGIC_BYTES = 1 << 10  # read from a file to find its format
LARGE = 1 << 20  # pixels; larger films are decoded at a fraction of their size, or averaged before tables are applied
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"
CODESTREAM = b"\xff\x4f\xff\x51"  # where JPEG 2000 begins, in a JP2 file too
GIT_LFS_MAGIC = b"version https://git-lfs"
GZIP_MAGIC = b"\x1f\x8b"
_FIRST_PICTURES = re.compile(PNG_MAGIC + rb"|\xff\xd8\xff")  # of the first version
_PICTURES = re.compile(
    _FIRST_PICTURES.pattern
    + rb"|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|BM.{4}\0{4}|GIF8|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
_BARE_DICOM = re.compile(rb"[\x02\x08]\0")  # the first group of elements of a file without preamble
_BARE_ELEMENT = re.compile(rb"[\x02\x08]\0.\0(?:[A-Z]{2}|.[\0\x01]\0\0)", re.DOTALL)  # the same, and a type or length
_DICOMDIR_CLASS = b"1.2.840.10008.1.3.10"
_OTHERS = (  # what lies among radiographs, and what to do about it
    (re.compile(GIT_LFS_MAGIC), "a Git LFS pointer and not the image itself", "run `git lfs pull`"),
    (re.compile(rb"%PDF"), "a PDF document", ""),
    (re.compile(rb"PK\x03\x04|Rar!|7z\xbc\xaf"), "an archive (ZIP, RAR or 7z)", "unpack it"),
    (re.compile(rb".{344}ni1\0", re.DOTALL), "the header of a NIfTI pair", "convert it and its .img to one .nii file"),
    (re.compile(rb"NRRD0|ObjectType|NDims"), "an NRRD or MetaImage", "convert it to NIfTI"),
    (re.compile(rb"P[2356]\s|\xff\x0a|\0\0\0\x0cJXL "), "a PNM or JPEG XL picture", "convert it to PNG"),
    (re.compile(rb"\0\x05\x16\x07"), "metadata of macOS", ""),
    (re.compile(rb".{4}ftypavif", re.DOTALL), "an AVIF picture", "convert it to PNG"),
    (re.compile(rb".{4}ftyp(?:hei|mif|msf)", re.DOTALL), "a HEIC picture", "convert it to PNG"),
    (re.compile(rb"8BPS"), "a Photoshop document", "convert it to PNG"),
    (re.compile(rb"\s*<(?:!doctype html|html|\?xml|svg)", re.IGNORECASE), "a web page, or XML", "download the image"),
)

_PIXELS = b"\xe0\x7f\x10\x00"  # the tag of DICOM's pixels
_US = rb"(?:US\x02\x00|\x02\x00\x00\x00)"  # between the tag and the value of a number, explicit and implicit
_DICOM_OF_VERSION_2 = re.compile(
    rb"\x28\x00[\x20\x22\x23]\x01"  # padding
    rb"|\x28\x00[\x00\x10]\x30|PALETTE"  # lookup tables
    rb"|\x28\x00\x02\x00" + _US + rb"\x03.{1,400}?\x28\x00\x00\x01" + _US + rb"\x10"  # deep colours
    rb"|\x28\x00\x00\x01" + _US + rb"\x20"  # 32 bits
    rb"|\x28\x00\x56\x10(CS\x00\x00|\x00{4})"  # an empty VOI function
    rb"|4\.50.*\x28\x00\x04\x00.{4}RGB"  # JPEG that may be YCbCr all the same
    rb"|1\.2\.840\.10008\.1\.2\.(4\.51|2|1\.99)",  # 12-bit JPEG; big endian and deflated, not searched here
    re.DOTALL,
)
_DICOM_OF_VERSION_4 = re.compile(
    rb"\x28\x00[\x52\x53]\x10(?:DS\x00\x00|\x00{4}|(?:DS..|..\x00\x00) )"  # half of a rescale left blank
    rb"|\x28\x00\x51\x10(?:DS..|..\x00\x00)[-+ 0.\\A-Z]"  # a first window of no width
    rb"|\x28\x00\x50\x10(?:DS..|..\x00\x00)[ \\A-Z]"  # or without a centre; some programs write None
    rb"|\x28\x00\x56\x10(?:CS..|..\x00\x00)(?!LINEAR|SIGMOID)"  # an unknown VOI function
    rb"|\x00\x52[\x29\x30]\x92"  # an enhanced object's tables of its frame
    rb"|1\.2\.840\.10008\.1\.2\.4\.20[1-3]",  # high-throughput JPEG 2000
    re.DOTALL,
)
_RESCALE = (b"\x28\x00\x52\x10", b"\x28\x00\x53\x10")
_ONCE_NEEDED = (b"\x28\x00\x01\x01", b"\x28\x00\x03\x01")  # bits stored and pixel representation
_PLANAR_CONFIGURATION = b"\x28\x00\x06\x00"  # once needed in colours
_ONE_CHANNEL = re.compile(rb"MONOCHROME|PALETTE COLOR")
_STORED_AND_HIGH_BIT = re.compile(
    rb"\x28\x00\x01\x01" + _US + rb"(.)\x00\x28\x00\x02\x01" + _US + rb"(.)\x00", re.DOTALL
)
_ROWS_AND_COLUMNS = re.compile(rb"\x28\x00\x10\x00" + _US + rb"(..)\x28\x00\x11\x00" + _US + rb"(..)", re.DOTALL)
_DEEP_BITS = 16
_STREAM_START = re.compile(JPEG_START + b"\xff|" + CODESTREAM)
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 of JPEG, and that of JPEG-LS
_FILL = 0xFF  # any number of these before a marker
_MAYBE_DEEP_OR_WAVELETS = (b"II", b"MM", b"\0\0\0\x0cjP", b"\xff\x4f")  # TIFF and JPEG 2000
_NIFTI_COLOURS_OR_BYTES = {2, 128, 2304}  # types that are not scaled by percentile


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
    return is_picture(start) or is_nifti(start)


def explain_refusal(start: bytes) -> tuple[str, str]:
    """Return what a file is if it is not an image, and what to do about it."""
    for magic, kind, hint in _OTHERS:
        if magic.match(start):
            return f"the file is {kind}", hint
    return "the file is not an image: PNG, JPEG, TIFF, WebP, BMP, GIF, JPEG 2000, DICOM or NIfTI", ""


def reader_versions(start: bytes) -> int:
    """Return which versions of the reader changed the pixels of files like this one: version 1 as bit 0, and so on."""
    versions, newest = 0, NEWEST_READER
    while newest:
        version = reader_version(start, newest)
        versions |= 1 << (version - 1)
        newest = version - 1
    return versions


def reader_version(start: bytes, newest: int = NEWEST_READER) -> int:
    """Return the last version, up to `newest`, that changed the pixels of files that start like this one.

    It is part of a cache's content key: a change that gives some files other pixels needs a new version for them.
    """
    if newest == 1:
        return 1
    with suppress(struct.error, IndexError):  # cut off
        if newest > 3 and _is_of_version_4(start):  # noqa: PLR2004 - a version
            return 4
        if newest > 2 and _is_of_version_3(start):  # noqa: PLR2004 - a version
            return 3
    if not is_dicom(start):
        return 2 if _picture_of_version_2(start) else 1
    header, pixels, _ = start.partition(_PIXELS)
    is_shifted = _is_shifted(_STORED_AND_HIGH_BIT.search(header))
    return 2 if not pixels or is_shifted or _DICOM_OF_VERSION_2.search(header) else 1


class StreamHeader(NamedTuple):
    """What a JPEG, JPEG-LS or JPEG 2000 stream says of itself."""

    width: int
    height: int
    num_channels: int
    num_bits: int
    is_signed: bool = False


def stream_header(stream: bytes) -> StreamHeader | None:
    """Read the header of compressed pixels, None if they have none; Pillow does not know all of these.

    Raises:
        struct.error: it is cut off.
    """
    if not stream.startswith(JPEG_START):
        start = stream.find(CODESTREAM, 0, NUM_MAGIC_BYTES)
        if start < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">4L", stream, start + 8)
        num_channels, depth = struct.unpack_from(">HB", stream, start + 40)
        return StreamHeader(right - left, bottom - top, num_channels, (depth & 0x7F) + 1, depth > 0x7F)  # noqa: PLR2004
    place = len(JPEG_START)
    while stream[place : place + 1] == b"\xff":
        marker, length, num_bits, height, width, num_channels = struct.unpack_from(">BHBHHB", stream, place + 1)
        if marker in _FRAME_MARKERS:
            return StreamHeader(width, height, num_channels, num_bits)
        place += 1 if marker == _FILL else 2 + length
    return None


def _is_of_version_4(start: bytes) -> bool:
    """Tell files with mistakes that came to be corrected or refused with this version."""
    if not is_dicom(start):
        nifti = _nifti_header(start)
        return start.startswith(_MAYBE_DEEP_OR_WAVELETS) or (nifti is not None and nifti.extension_bytes != 0)
    header, _, pixels = start.partition(_PIXELS)
    bits = _STORED_AND_HIGH_BIT.search(header)
    if any(
        (
            not pixels,  # big endian, deflated or floating point, not searched here
            not all(part in header for part in _ONCE_NEEDED),
            _PLANAR_CONFIGURATION not in header and not _ONE_CHANNEL.search(header),
            sum(part in header for part in _RESCALE) == 1,
            _PICTURES.match(start),
            _DICOM_OF_VERSION_4.search(header),
            _is_shifted(bits),
        )
    ):
        return True
    begins = _STREAM_START.search(pixels, 0, NUM_MAGIC_BYTES) if b"1.2.840.10008.1.2.4." in header else None
    stream = stream_header(pixels[begins.start() :]) if begins else None
    if stream is None or bits is None:
        return False
    is_mixed_up = b"MONOCHROME" in header and stream.num_channels > 1
    return is_mixed_up or stream.is_signed or stream.num_bits > bits[1][0]


def _is_of_version_3(start: bytes) -> bool:
    """Return whether an image is decoded at a fraction of its size, or averaged, which came with version 3."""
    if start.startswith(PNG_MAGIC):
        return start[24] == _DEEP_BITS and prod(struct.unpack(">2L", start[16:24])) >= LARGE
    if start.startswith(JPEG_START):
        return prod((stream_header(start) or (LARGE, 1))[:2]) >= LARGE
    if is_picture(start):
        return start.startswith(_MAYBE_DEEP_OR_WAVELETS)
    if not is_dicom(start):
        nifti = _nifti_header(start)
        return nifti is not None and nifti.kind not in _NIFTI_COLOURS_OR_BYTES and nifti.num_pixels >= LARGE
    header, pixels, _ = start.partition(_PIXELS)
    sides = _ROWS_AND_COLUMNS.search(header)
    size = prod(int.from_bytes(side, "little") for side in sides.groups()) if sides else LARGE
    return not pixels or (size >= LARGE and b"MONOCHROME" in header)


def _is_shifted(bits: re.Match[bytes] | None) -> bool:
    """Return whether the bits stored are not the lowest, by their number and the high bit."""
    return bits is not None and bits[1][0] != bits[2][0] + 1


class _NiftiHeader(NamedTuple):
    kind: int
    num_pixels: int
    extension_bytes: int


def _nifti_header(start: bytes) -> _NiftiHeader | None:
    if start.startswith(GZIP_MAGIC):
        with suppress(zlib.error):
            start = zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(start[:NUM_MAGIC_BYTES], NUM_MAGIC_BYTES)
    if not is_nifti(start):
        return None
    is_second = start[4:6] == b"n+"
    order = "<" if start[:1] in (b"\x5c", b"\x1c") else ">"  # 348 or 540 bytes
    dims = struct.unpack_from(f"{order}8q" if is_second else f"{order}8h", start, 16 if is_second else 40)
    (kind,) = struct.unpack_from(f"{order}h", start, 12 if is_second else 70)
    (offset,) = struct.unpack_from(f"{order}q" if is_second else f"{order}f", start, 168 if is_second else 108)
    num_pixels = prod(max(1, length) for length in dims[1 : 1 + dims[0]])
    return _NiftiHeader(kind, num_pixels, offset - (544 if is_second else 352))


def _picture_of_version_2(start: bytes) -> bool:
    if not start.startswith(PNG_MAGIC):
        return is_picture(start) and not _FIRST_PICTURES.match(start)
    return start[24:25] == bytes([_DEEP_BITS]) and (start[25:26] > b"\0" or b"tRNS" in start)
