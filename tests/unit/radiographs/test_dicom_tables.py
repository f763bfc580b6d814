import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from tests.support.dicom import dataset_of, encoded, table
from tests.unit.radiographs.conftest import encode, square, stretched
from tests.unit.radiographs.test_dicom import CURVE, read

SYNTAXES = {"<": ExplicitVRLittleEndian, ">": ExplicitVRBigEndian}


def test_a_voi_table_may_fall_and_may_be_short(stored_HW):
    dataset = dataset_of(stored_HW, VOILUTSequence=[table(np.arange(2000)[::-1], first=800)])
    expected_HW = np.rint(255 * np.clip(2799.0 - stored_HW, 0, 1999) / 2047).astype(np.uint8)
    assert np.abs(read(encoded(dataset)).astype(int) - square(expected_HW)).max() <= 1


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("form", ["words", "numbers", "packed", "packed numbers"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("num_entries", [4096, 4095])
def test_tables_of_every_form_and_byte_order_are_applied(stored_HW, sequence, form, order, num_entries):
    entries = np.rint(255 * CURVE)[:num_entries]
    elements = {sequence: [table(entries, bits=8, form=form, order=order)]}
    dataset = dataset_of(stored_HW, syntax=SYNTAXES[order], **elements)
    grey_HW = entries[stored_HW].astype(np.uint8)
    expected_HW = square(grey_HW if sequence == "VOILUTSequence" else stretched(grey_HW))
    assert np.abs(read(encoded(dataset)).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("stated", [8, 12, 16])
def test_the_entries_of_a_voi_table_tell_their_bits(stored_HW, bits, stated):
    dataset = dataset_of(stored_HW, VOILUTSequence=[table(np.rint((2**bits - 1) * CURVE), bits=stated)])
    expected_HW = square(np.rint(255 * CURVE[stored_HW]).astype(np.uint8))
    assert np.abs(read(encoded(dataset)).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("dtype", "offset", "first"),
    [("u2", 1000, 1000), ("u2", 40000, 40000), ("u2", 40000, -25536), ("i2", -2048, -2048), ("i2", -2048, 63488)],
)
def test_the_first_value_of_a_table_has_the_sign_that_the_film_shows(stored_HW, dtype, offset, first, syntax):
    shifted_HW = (stored_HW.astype(int) + offset).astype(dtype)
    dataset = dataset_of(shifted_HW, 16, syntax, VOILUTSequence=[table(np.rint(65535 * CURVE), first=first)])
    expected_HW = square(np.rint(255 * CURVE[stored_HW]).astype(np.uint8))
    assert np.abs(read(encoded(dataset)).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("form", ["words", "packed"])
@pytest.mark.parametrize("order", "<>")
def test_palettes_of_every_form_are_looked_up(film_HW, square_HW, bits, form, order):
    entries = np.rint(np.arange(256) * (2**bits - 1) / 255) if form == "words" else np.arange(256)
    dataset = dataset_of(film_HW, syntax=SYNTAXES[order], PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        item = table(entries, bits=16 if form == "words" else 8, form=form, order=order)
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", item.LUTDescriptor)
        setattr(dataset, f"{colour}PaletteColorLookupTableData", item.LUTData)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit])
def test_a_segmented_palette_is_looked_up(film_HW, square_HW, syntax):
    dataset = dataset_of(film_HW, syntax=syntax, PhotometricInterpretation="PALETTE COLOR")
    if syntax == JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([encode(Image.fromarray(film_HW), "JPEG", quality=98)])
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        ramp = np.array([0, 1, 0, 1, 255, 65535], "<u2").tobytes()  # one entry of 0, then a line to the largest
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", ramp)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 2
