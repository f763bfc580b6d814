"""Read DICOM files: never further than they declare, and with known mistakes in their headers corrected."""

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pydicom
from isal import isal_zlib
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble  # as `dcmread` itself does
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from csi_job.errors import DataError
from csi_job.radiographs.content import stream_header
from csi_job.radiographs.grey import check_size

_BYTE_BITS, _WORD_BITS = 8, 16
_MAX_INFLATED_BYTES = 1 << 29  # the same limit as for files that are not deflated
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")
_ONE_CHANNEL = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_HIGH_THROUGHPUT = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)  # OpenJPEG decodes them as JPEG 2000
_LOSSY_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
_GROUPS_OF_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")  # of enhanced objects
_TABLES_OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_OTHER_MODALITIES = ("CT", "MG", "MR", "NM", "PT", "US")
# MIMIC-CXR has "XTABLE LATERAL"; a lateral decubitus film is frontal.
_LATERAL_VIEW = re.compile(r"LL|RL|(?!.*(?:DECUB|\b(?:AP|PA|LLD|RLD)\b)).*\bLAT(?:ERAL)?\b.*")


def read_file(content: bytes, max_image_side_px: int) -> Dataset:
    """Read a DICOM file of one radiograph, ready for pydicom's decoders.

    Raises:
        DataError: no pixels, several frames, too small or too large, lateral, of another modality, or cut off.
        Exception: anything pydicom raises for damaged content.
    """
    dataset = _read_bounded(content)
    if not any(name in dataset for name in _PIXELS):
        raise DataError("the DICOM file has no pixels, or is cut off")
    missing = [name for name in _NEEDED if dataset.get(name) in (None, "")]
    if missing:
        raise DataError(f"the DICOM file lacks {', '.join(missing)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise DataError("the DICOM file has several frames", got=int(dataset.NumberOfFrames), allowed="one radiograph")
    if dataset.SamplesPerPixel != (1 if dataset.PhotometricInterpretation in _ONE_CHANNEL else 3):
        got = f"{dataset.PhotometricInterpretation} with {dataset.SamplesPerPixel} samples per pixel"
        raise DataError("the DICOM file is neither grey nor RGB", got=got)
    for name, usual in (("PlanarConfiguration", 0), ("PixelRepresentation", 0), ("BitsStored", dataset.BitsAllocated)):
        dataset.setdefault(name, usual)
    check_size(int(dataset.Columns), int(dataset.Rows), max_image_side_px)
    _refuse_other_views(dataset)
    _settle_syntax(dataset)
    _settle_tables(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _follow_stream(dataset, max_image_side_px)
    return dataset


def _refuse_other_views(dataset: Dataset) -> None:
    """Refuse what shows no right and left lung beside each other."""
    modality, view = (str(dataset.get(name) or "").strip().upper() for name in ("Modality", "ViewPosition"))
    if modality in _OTHER_MODALITIES and "LOCALIZER" not in (dataset.get("ImageType") or ()):
        raise DataError("the DICOM file is not a radiograph", got=f"Modality {modality}")
    directions = orientation(dataset)
    is_sagittal = not set("AP").isdisjoint(directions) and set("LR").isdisjoint(directions)
    if _LATERAL_VIEW.fullmatch(view) or (not view and is_sagittal):
        got = f"ViewPosition {view}" if view else f"PatientOrientation {directions}"
        raise DataError("the film is lateral, and shows no right and left zones", got=got)


def orientation(dataset: Dataset) -> str:
    """Return where rows, then columns, mostly point by the PatientOrientation, such as "LF"; "" if unknown."""
    directions = dataset.get("PatientOrientation")
    return "".join(name.strip()[:1].upper() for name in directions) if isinstance(directions, MultiValue) else ""


def _read_bounded(content: bytes) -> Dataset:
    """Read a file; a deflated one is inflated up to the limit of file sizes, since pydicom has none."""
    file = io.BytesIO(content)
    read_preamble(file, force=True)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(io.BytesIO(content), force=True)
    inflater = isal_zlib.decompressobj(-isal_zlib.MAX_WBITS)
    inflated = inflater.decompress(file.read(), _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise DataError("the DICOM file inflates to more than a radiograph", allowed=f"{_MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise DataError("the DICOM file is cut off")
    dataset = read_dataset(io.BytesIO(inflated), is_implicit_VR=False, is_little_endian=True)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def _settle_syntax(dataset: Dataset) -> None:
    """Set the transfer syntax to decode by, or raise `DataError` if nothing decodes the one stated."""
    meta = dataset.file_meta
    if "TransferSyntaxUID" not in meta:  # a bare data set; it can only be uncompressed
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    if meta.TransferSyntaxUID in _HIGH_THROUGHPUT:
        meta.TransferSyntaxUID = JPEG2000Lossless
    with suppress(NotImplementedError):  # unknown to pydicom
        if get_decoder(meta.TransferSyntaxUID).is_available:
            return
    what = f"pixels of transfer syntax {meta.TransferSyntaxUID.name} cannot be decoded"
    raise DataError(what, hint="convert the file to Explicit VR Little Endian")


def _settle_tables(dataset: Dataset) -> None:
    """Keep the first window that can be applied, and fill in a slope or intercept that devices leave blank."""
    for groups in _GROUPS_OF_FRAMES:
        for tables in _TABLES_OF_FRAMES:
            dataset.update(_first(_first(dataset.get(groups)).get(tables)))
    rescale = {name: dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept")}
    if any(name in dataset for name in rescale):
        dataset.RescaleSlope = 1 if rescale["RescaleSlope"] is None else rescale["RescaleSlope"]
        dataset.RescaleIntercept = rescale["RescaleIntercept"] or 0
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


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):  # blank, or e.g. a decimal comma
        return None


def _follow_stream(dataset: Dataset, max_image_side_px: int) -> None:
    """Trust the header of the compressed pixels, as decoders do, and ignore the table of offsets: there is one frame.

    Raises:
        DataError: too large, or another image than the file's header says.
    """
    dataset.pop("ExtendedOffsetTable", None)
    offsets_end = 8 + int.from_bytes(dataset.PixelData[4:8], "little")
    if offsets_end > 8:  # noqa: PLR2004 - an empty table
        dataset.PixelData = dataset.PixelData[:4] + bytes(4) + dataset.PixelData[offsets_end:]
    stream = stream_header(get_frame(dataset.PixelData, 0, number_of_frames=1))
    if stream is None:  # run lengths have no header
        return
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
    if is_colour and is_shallow and dataset.file_meta.TransferSyntaxUID in _LOSSY_JPEG:  # whatever the header says
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = _BYTE_BITS, _BYTE_BITS, _BYTE_BITS - 1
    elif stream.num_bits > dataset.BitsAllocated:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = _WORD_BITS, stream.num_bits, stream.num_bits - 1
    elif stream.num_bits <= _WORD_BITS < dataset.BitsAllocated:  # gdcm ends the process for JPEG in longer words
        dataset.BitsAllocated, dataset.BitsStored = _WORD_BITS, min(int(dataset.BitsStored), _WORD_BITS)
        dataset.HighBit = dataset.BitsStored - 1
