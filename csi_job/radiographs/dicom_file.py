"""Read DICOM files: never further than they declare, and with known mistakes in their headers corrected."""

import io
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from isal import isal_zlib
from pydicom.dataset import Dataset
from pydicom.filereader import (  # as `dcmread` itself does
    _read_command_set_elements,
    _read_file_meta_info,
    read_dataset,
    read_preamble,
)
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from csi_job.errors import DataError
from csi_job.radiographs.content import (
    CODESTREAM,
    END_OF_IMAGE,
    StreamHeader,
    lacks_end,
    refuse_cut_jpeg,
    stream_header,
)
from csi_job.radiographs.grey import check_size

_BYTE_BITS, _WORD_BITS = 8, 16
_MAX_INFLATED_BYTES = 1 << 29  # the same limit as for files that are not deflated
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")
_ONE_CHANNEL = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0" + bytes(4)  # of fragments: one, and the end of all
_PIXEL_TAG, _PIXEL_TAG_BYTES = 0x7FE00010, b"\xe0\x7f\x10\x00"
_COMMANDS = re.compile(rb"\0{4}(?:UL\x04\0|\x04\0{3})")  # of a transfer: the first, and no padding
_FIRST_TAG = 0x00010000  # after those of group 0, which padding of zeros looks like
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSY_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
_SYNTAXES = {  # by the marker of the stream; OpenJPEG decodes high-throughput JPEG 2000 too
    CODESTREAM[1]: (JPEG2000, JPEG2000Lossless),
    0xC3: (JPEGLosslessSV1, JPEGLossless),
    0xF7: (JPEGLSLossless, JPEGLSNearLossless),
}
_STRICT = (CODESTREAM[1], 0xF7)  # their decoders insist on an end, and notice what is missing before it
_RUN_LENGTHS = re.compile(rb"[\x01-\x0f]\0\0\0\x40\0\0\0")  # the number of segments, and where the first begins
_GROUPS_OF_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")  # of enhanced objects
_TABLES_OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_OTHER_MODALITIES = ("CT", "ES", "MG", "MR", "NM", "OP", "OPT", "PT", "SEG", "SM", "US")
# MIMIC-CXR has "XTABLE LATERAL"; a lateral decubitus film is frontal.
_LATERAL_VIEW = re.compile(r"LL|RL|(?!.*(?:DECUB|\b(?:AP|PA|LLD|RLD)\b)).*\b[LR]?LAT(?:ERAL)?\b.*")


def read_file(content: bytes, max_image_side_px: int) -> Dataset:
    """Read a DICOM file of one radiograph, ready for pydicom's decoders.

    Raises:
        DataError: no pixels, several frames, too small or too large, lateral, of another modality, or cut off.
        Exception: anything pydicom raises for damaged content.
    """
    dataset = _read_bounded(content)
    if not any(name in dataset for name in _PIXELS):
        modality = _shown(dataset.get("Modality") or "")  # e.g. that of a report or presentation state
        raise DataError("the DICOM file has no pixels, or is cut off", got=f"Modality {modality}" if modality else None)
    missing = [name for name in _NEEDED if dataset.get(name) in (None, "")]
    if missing:
        raise DataError(f"the DICOM file lacks {', '.join(missing)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise DataError("the DICOM file has several frames", got=int(dataset.NumberOfFrames), allowed="one radiograph")
    is_colour = str(dataset.PhotometricInterpretation).startswith(("RGB", "YBR_"))
    if dataset.SamplesPerPixel != (3 if is_colour else 1 if dataset.PhotometricInterpretation in _ONE_CHANNEL else 0):
        got = f"{_shown(dataset.PhotometricInterpretation)} with {dataset.SamplesPerPixel} samples per pixel"
        raise DataError("the DICOM file is neither grey nor RGB", got=got)
    for name, usual in (("PlanarConfiguration", 0), ("PixelRepresentation", 0), ("BitsStored", dataset.BitsAllocated)):
        dataset.setdefault(name, usual)
    check_size(int(dataset.Columns), int(dataset.Rows), max_image_side_px)
    _refuse_other_views(dataset)
    header = _settle_syntax(dataset)
    _settle_tables(dataset)
    if header is not None:
        _follow_stream(dataset, header, max_image_side_px)
    return dataset


def _refuse_other_views(dataset: Dataset) -> None:
    """Refuse what shows no right and left lung beside each other."""
    stated = (
        dataset.get("Modality"),
        dataset.get("ViewPosition"),
        _first(dataset.get("ViewCodeSequence")).get("CodeMeaning"),
    )
    modality, position, code = (str(value or "").strip().upper() for value in stated)
    view = position or code
    if modality in _OTHER_MODALITIES and "LOCALIZER" not in (dataset.get("ImageType") or ()):
        raise DataError("the DICOM file is not a radiograph", got=f"Modality {_shown(modality)}")
    directions = orientation(dataset)
    is_sagittal = not set("AP").isdisjoint(directions) and set("LR").isdisjoint(directions)
    lateral = "the film is lateral, and shows no right and left zones"
    if _LATERAL_VIEW.fullmatch(view):
        raise DataError(lateral, got=f"{'ViewPosition' if position else 'ViewCodeSequence'} {_shown(view)}")
    if is_sagittal and not position:  # a code's meaning may be in any language
        raise DataError(lateral, got=f"PatientOrientation {directions}")


def orientation(dataset: Dataset) -> str:
    """Return where rows, then columns, mostly point by the PatientOrientation, such as "LF"; "" if unknown."""
    directions = dataset.get("PatientOrientation")
    return "".join(name.strip()[:1].upper() for name in directions) if isinstance(directions, MultiValue) else ""


def _read_bounded(content: bytes) -> Dataset:
    """Read a file to the end of its pixels, inflated up to the limit of file sizes, since pydicom has none.

    The first element tells the encoding, whatever the meta information says.
    """
    file = io.BytesIO(content)
    read_preamble(file, force=True)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        content = _inflated(file.read())
        file = io.BytesIO(content)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if _COMMANDS.match(content, file.tell()):
        _read_command_set_elements(file)
    start = file.tell()
    is_little_endian = content[start + 1 : start + 2] == b"\0" or content.startswith(_PIXEL_TAG_BYTES, start)
    is_implicit = not content[start + 4 : start + 6].isalpha()
    for end in (b"", _DELIMITER):  # of fragments, which may lack it
        file = io.BytesIO(content + end)
        file.seek(start)
        dataset = read_dataset(file, is_implicit, is_little_endian, stop_when=_is_no_element)
        if any(name in dataset for name in _PIXELS) or _PIXEL_TAG_BYTES not in content:
            break
    dataset.file_meta = meta
    return dataset


def _inflated(content: bytes) -> bytes:
    inflater = isal_zlib.decompressobj(-isal_zlib.MAX_WBITS)
    inflated: bytes = inflater.decompress(content, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise DataError("the DICOM file inflates to more than a radiograph", allowed=f"{_MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise DataError("the DICOM file is cut off")
    return inflated


def _is_no_element(tag: int, _vr: str | None, _length: int) -> bool:
    """Return whether what follows is padding, or comes after the pixels: it may be anything."""
    return not _FIRST_TAG <= tag <= _PIXEL_TAG


def _settle_syntax(dataset: Dataset) -> StreamHeader | None:
    """Set the transfer syntax to decode by, and return the header of the compressed pixels, if they have one.

    What the pixels are counts, as archives and devices state other syntaxes. Fragments are joined: there is one frame.

    Raises:
        DataError: nothing decodes the syntax.
    """
    meta, header, pixels = dataset.file_meta, None, dataset.get("PixelData")
    if meta.get("TransferSyntaxUID", ImplicitVRLittleEndian) in _PLAIN:
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    if pixels and (meta.TransferSyntaxUID not in _PLAIN or dataset["PixelData"].is_undefined_length):
        is_wrapped = pixels.startswith(_ITEM)
        stream = _joined(pixels) if is_wrapped else pixels
        header = stream_header(stream)
        if header is not None:
            fitting = _SYNTAXES.get(header.marker, LOSSY_JPEG)
            if meta.TransferSyntaxUID not in fitting:
                meta.TransferSyntaxUID = fitting[0]
        elif _RUN_LENGTHS.match(stream):
            meta.TransferSyntaxUID = RLELossless
        elif meta.TransferSyntaxUID.is_private:
            pass  # its pixels may be in any order
        elif not is_wrapped or len(stream) - get_expected_length(dataset) in (0, 1):
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
        stream = _with_end(stream, header)
        start = b"" if meta.TransferSyntaxUID in _PLAIN else _before_fragment(len(stream))
        is_same_length = len(pixels) == len(start) + len(stream)
        if not (is_same_length and pixels.startswith(start) and pixels.endswith(stream)):  # else spare a copy
            dataset.PixelData = start + stream
        dataset.pop("ExtendedOffsetTable", None)
    with suppress(NotImplementedError):  # unknown to pydicom
        if get_decoder(meta.TransferSyntaxUID).is_available:
            return header
    what = f"pixels of transfer syntax {_shown(meta.TransferSyntaxUID.name)} cannot be decoded"
    raise DataError(what, hint="convert the file to Explicit VR Little Endian")


def _with_end(stream: bytes, header: StreamHeader | None) -> bytes:
    """Add the end marker that strict decoders insist on; raise `DataError` if others would make up what is missing."""
    if header is None or header.marker not in _STRICT:
        refuse_cut_jpeg(stream)
    elif lacks_end(stream, header):
        return stream.rstrip(b"\0").removesuffix(END_OF_IMAGE[:1]) + END_OF_IMAGE
    return stream


def _before_fragment(length: int) -> bytes:
    """Return what comes before a stream that is one fragment: an empty table of offsets, and its length."""
    return _ITEM + bytes(4) + _ITEM + length.to_bytes(4, "little")


def _joined(items: bytes) -> bytes:
    """Join fragments, without the table of offsets before them, which some files lack."""
    parts, place = [], 0
    while items.startswith(_ITEM, place):
        end = place + 8 + int.from_bytes(items[place + 4 : place + 8], "little")
        parts.append(items[place + 8 : end])
        place = end
    has_table = len(parts) > 1 and stream_header(parts[0]) is None
    return b"".join(parts[has_table:])


def _settle_tables(dataset: Dataset) -> None:
    """Keep the first window that can be applied, and fill in a slope or intercept that devices leave blank."""
    for groups in _GROUPS_OF_FRAMES:
        for tables in _TABLES_OF_FRAMES:
            dataset.update(_first(_first(dataset.get(groups)).get(tables)))
    if "LUTData" not in _first(dataset.get("ModalityLUTSequence")):
        dataset.pop("ModalityLUTSequence", None)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": 0}
    if any(name in dataset for name in rescale):
        for name, usual in rescale.items():
            setattr(dataset, name, _only_number(dataset, name, usual))
    dataset.VOILUTFunction = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if dataset.VOILUTFunction not in ("LINEAR_EXACT", "SIGMOID"):
        dataset.VOILUTFunction = "LINEAR"
    smallest = 1 if dataset.VOILUTFunction == "LINEAR" else 0
    centers, widths = (_numbers(dataset.get(f"Window{name}")) for name in ("Center", "Width"))
    windows = [
        (center, width)
        for center, width in zip(centers, widths, strict=False)
        if center is not None and width is not None and width > 0 and width >= smallest
    ]
    dataset.WindowCenter, dataset.WindowWidth = windows[0] if windows else (None, None)


def _first(items: Sequence[Dataset] | None) -> Dataset:
    return items[0] if items else Dataset()


def _numbers(value: Any) -> list[float | None]:
    values = value if isinstance(value, MultiValue) else [value]
    return [_number(number) for number in values]


def _only_number(dataset: Dataset, name: str, usual: float) -> float:
    """Return the first value of an element; `usual` where it is blank."""
    value = dataset.get(name)
    number = _numbers(value)[0]
    if number is None and not value:
        return usual
    if number is None or not math.isfinite(number):
        raise DataError(f"{name} in the DICOM file is not a number", got=_shown(value))
    return number


def _shown(value: Any) -> str:
    """Return a value as text for an error, unless damage lets it contain other elements, which may name the patient."""
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    return text if text.isprintable() else "(damaged)"  # an element begins with binary numbers


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):  # blank, or e.g. a decimal comma
        return None


def _follow_stream(dataset: Dataset, stream: StreamHeader, max_image_side_px: int) -> None:
    """Trust the header of the compressed pixels, as decoders do.

    Raises:
        DataError: too large, or another image than the file's header says.
    """
    check_size(stream.width, stream.height, max_image_side_px)
    if (stream.width, stream.height) != (dataset.Columns, dataset.Rows):
        said = f"{stream.width}x{stream.height}, but the DICOM header says {dataset.Columns}x{dataset.Rows}"
        raise DataError(f"pixel data are {said}")
    if stream.num_channels != dataset.SamplesPerPixel:
        said = f"{stream.num_channels} channels, but the DICOM header says {dataset.SamplesPerPixel}"
        raise DataError(f"pixel data have {said}")
    if stream.is_signed:
        dataset.PixelRepresentation = 1
    is_colour, is_shallow = stream.num_channels > 1, stream.num_bits <= _BYTE_BITS
    if is_colour and is_shallow and dataset.file_meta.TransferSyntaxUID in LOSSY_JPEG:  # whatever the header says
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = _BYTE_BITS, _BYTE_BITS, _BYTE_BITS - 1
    elif stream.num_bits > dataset.BitsAllocated:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = _WORD_BITS, stream.num_bits, stream.num_bits - 1
    elif stream.num_bits <= _WORD_BITS < dataset.BitsAllocated:  # gdcm ends the process for JPEG in longer words
        dataset.BitsAllocated, dataset.BitsStored = _WORD_BITS, min(int(dataset.BitsStored), _WORD_BITS)
        dataset.HighBit = dataset.BitsStored - 1
