"""DICOM files as devices and archives write them, made by pydicom and GDCM."""

import io
from pathlib import Path

import gdcm
import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)


def dataset_of(
    pixels: np.ndarray, bits_stored: int = 12, syntax: UID = ExplicitVRLittleEndian, **elements: object
) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = syntax
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim > 2 else 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = min(bits_stored, dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return dataset


def table(entries: np.ndarray, *, first: int = 0, bits: int = 16, form: str = "words", order: str = "<") -> Dataset:
    """An item of a lookup table sequence: entries as words or packed two per word, raw or as numbers."""
    words = entries.astype(np.uint16)
    if form.startswith("packed"):
        words = np.append(entries, np.zeros(len(entries) % 2)).astype(np.uint8).view("<u2")
    item = Dataset()
    item.add(DataElement("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits]))
    as_numbers = form.endswith("numbers")
    item.add(
        DataElement(
            "LUTData", "US" if as_numbers else "OW", words.tolist() if as_numbers else bytes(words.astype(f"{order}u2"))
        )
    )
    return item


def encoded(dataset: Dataset, **options: object) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True, **options)
    return content.getvalue()


def compressed(tmp_path: Path, dataset: Dataset, syntax: str) -> bytes:
    (tmp_path / "plain").write_bytes(encoded(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "plain"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "packed"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (tmp_path / "packed").read_bytes()
