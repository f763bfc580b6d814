"""Phantoms as files: the formats, depths and header fields of real radiographs, the same bytes each time."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

_PIXEL_MM = 0.6
_STORED_BITS = 12  # as most detectors


def write_film(film_HW: np.ndarray, path_without_extension: Path, variant: int) -> None:
    """Write a film, float32 `[H, W]` from 0 (black) to 1, in a format; consecutive variants give all formats."""
    extension, encode = _ENCODERS[variant % len(_ENCODERS)]
    path = path_without_extension.with_name(path_without_extension.name + extension)
    path.write_bytes(encode(film_HW, path_without_extension.name))


def _nifti(film_HW: np.ndarray) -> bytes:
    """Store right-to-left, (front-to-back,) bottom-to-top, as an image volume of one coronal slice is."""
    import nibabel

    volume = _levels(film_HW, _STORED_BITS).T[:, None, ::-1].astype(np.int16)
    image = nibabel.Nifti1Image(volume, np.diag([-_PIXEL_MM, 1, _PIXEL_MM, 1]))  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _levels(film_HW: np.ndarray, num_bits: int) -> np.ndarray:
    levels_HW: np.ndarray = np.rint(film_HW * ((1 << num_bits) - 1))
    return levels_HW.astype(np.uint8 if num_bits <= 8 else np.uint16)  # noqa: PLR2004 - bits of a byte


def _picture(film_HW: np.ndarray, num_bits: int, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(_levels(film_HW, num_bits)).save(content, kind, **options)
    return content.getvalue()


def _dicom(film_HW: np.ndarray, name: str, photometric: str) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    levels_HW = _levels(film_HW, _STORED_BITS)
    if photometric == "MONOCHROME1":  # 0 is white
        levels_HW = (1 << _STORED_BITS) - 1 - levels_HW
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID = "Phantom", name
    dataset.Rows, dataset.Columns = levels_HW.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, _STORED_BITS, _STORED_BITS - 1
    dataset.PixelRepresentation = 0
    dataset.PixelSpacing = [_PIXEL_MM, _PIXEL_MM]
    dataset.WindowCenter, dataset.WindowWidth = 1 << (_STORED_BITS - 1), 1 << _STORED_BITS
    dataset.PixelData = levels_HW.astype("<u2").tobytes()
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


_ENCODERS: tuple[tuple[str, Callable[[np.ndarray, str], bytes]], ...] = (
    (".png", lambda film_HW, _: _picture(film_HW, 8, "PNG", compress_level=1)),
    (".jpg", lambda film_HW, _: _picture(film_HW, 8, "JPEG", quality=90)),
    (".png", lambda film_HW, _: _picture(film_HW, 16, "PNG", compress_level=1)),
    (".dcm", lambda film_HW, name: _dicom(film_HW, name, "MONOCHROME2")),
    (".jpeg", lambda film_HW, _: _picture(film_HW, 8, "JPEG", quality=90)),
    (".nii.gz", lambda film_HW, _: _nifti(film_HW)),
    (".png", lambda film_HW, _: _picture(film_HW, 8, "PNG", compress_level=1)),
    (".dcm", lambda film_HW, name: _dicom(film_HW, name, "MONOCHROME1")),
)
NUM_VARIANTS = len(_ENCODERS)
