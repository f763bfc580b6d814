import bz2
import csv
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csi_job.errors import DataError
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable, read_table
from csi_job.radiographs.zones import ZONES
from tests.support.cost import cost_of

NO_SCORES = ["5", "-1", "2.5", "two", "1e0", "02", "²", "٢", "1_0", "0x1", "inf", "22", "+1"]
HEADER = ("FileID", "PatientID", *ZONES)
ROW = ("film 1", "P1", "0", "1", "2", "3", "4", "2.0")


def read(path: Path, content: str | bytes, **changes: object) -> LabelTable:
    path = path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, RadiographsSettings(**changes))


def lines(*rows: tuple[str, ...], separator: str = ";", end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in rows)


def refusal(path: Path, content: str | bytes, **changes: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, content, **changes)
    assert "\n" not in caught.value.render(identities=True)
    return caught.value


@pytest.mark.parametrize("separator", [";", ",", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separator_and_line_ends_are_detected(tmp_path, separator, end):
    table = read(tmp_path, lines(HEADER, ROW, separator=separator, end=end))
    assert table.file_ids == ("film 1",)
    assert table.patient_ids == ("P1",)
    assert table.rows == (2,)
    assert table.has_patients
    assert table.zones_NZ.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert table.zones_NZ.dtype == np.int8


@pytest.mark.parametrize("separator", [";", ",", "\t", "|"])
@pytest.mark.parametrize("line", ["sep={}", '"sep={}"', "SEP={}", "sep={};;;;;;;"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_the_first_line_may_state_the_separator(tmp_path, separator, line, encoding):
    text = line.format(separator) + "\r\n" + lines(HEADER, ROW, separator=separator, end="\r\n")
    table = read(tmp_path, text.encode(encoding))
    assert (table.file_ids, table.rows) == (("film 1",), (3,))


def test_quoted_cells_may_follow_a_space(tmp_path):
    quoted = [tuple(f'"{cell}"' for cell in cells) for cells in (HEADER, ROW)]
    for separator in (", ", ";  ", "| "):
        assert read(tmp_path, lines(*quoted, separator=separator)).patient_ids == ("P1",)
    only_patient = lines((HEADER[0], ' "PatientID"', *ZONES), (ROW[0], ' "P1"', *ROW[2:]))
    assert read(tmp_path, only_patient).patient_ids == ("P1",)


@pytest.mark.parametrize("name", ["remark", ' "remark"', '"remark, ""x"""'])
def test_quotes_within_a_cell_are_text_where_no_known_column_is_quoted_after_a_space(tmp_path, name):
    table = lines((*HEADER, name), (*ROW, ' "faint" line'), separator=",")
    assert read(tmp_path, table).file_ids == ("film 1",)


@pytest.mark.parametrize(
    ("cells", "score"),
    [
        (["", " ", "NaN", "nan", "NA", "Unknown", "?", "4", "4.0", "4,0"], 4),
        (["2.0", "2.", "2,0"], 2),
        ([" 3 "], 3),
        (["1.000"], 1),
    ],
)
def test_cells_are_scores_however_spreadsheets_write_them(tmp_path, cells, score):
    rows = [(f"f{number}", "P", cell, *"00000") for number, cell in enumerate(cells)]
    assert read(tmp_path, lines(HEADER, *rows)).zones_NZ[:, 0].tolist() == [score] * len(cells)


UNICODE = ("utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be")  # the last two without a mark


@pytest.mark.parametrize(
    ("content", "file_ids", "rows"),
    [
        (lines(HEADER, ("e\u0301", *ROW[1:])), ("\u00e9",), (2,)),
        (lines(HEADER, ("12345.0", *ROW[1:])), ("12345",), (2,)),
        (lines(HEADER, ("12345,0", *ROW[1:])), ("12345",), (2,)),
        ("\ufeff\ufeff" + lines(HEADER, ROW), ("film 1",), (2,)),
        (lines(HEADER, ('"a;b ""c"""', *ROW[1:])), ('a;b "c"',), (2,)),
        (lines((*HEADER, "remark"), (*ROW, "fine"), ("b", *ROW[1:])), ("film 1", "b"), (2, 3)),
        ("\n\n" + lines(HEADER, ROW) + "\n;;;;;;;\n" + lines(("b", *ROW[1:])), ("film 1", "b"), (4, 7)),
        *[(lines(HEADER, ("Müller €", *ROW[1:])).encode(e), ("Müller €",), (2,)) for e in UNICODE],
        (lines(HEADER, ("Müller-1", *ROW[1:])).encode("latin-1"), ("Müller-1",), (2,)),
    ],
    ids=["decomposed", "decimal", "comma", "two marks", "quoted", "more cells", "blank lines", *UNICODE, "latin-1"],
)
def test_identifiers_are_read_with_the_lines_they_stand_in(tmp_path, content, file_ids, rows):
    table = read(tmp_path, content)
    assert (table.file_ids, table.rows) == (file_ids, rows)


def test_unknown_words_are_a_setting(tmp_path):
    table = lines(HEADER, ("a", "P", "n/a", *"00000"))
    assert read(tmp_path, table, unknown_values=("N/A",)).zones_NZ[0, 0] == 4
    assert "n/a" in refusal(tmp_path, table).problems[0].what


MISSING = ["-", "\u2014", ".", "#N/A", "n/a", "NULL", "None", "<NA>", "(null)", "#DIV/0!", "-nan", "1.#QNAN", "\\N"]


@pytest.mark.parametrize("word", [*MISSING, "-1", "#NV", "9", "unk", "n.d."])
def test_a_refusal_names_the_setting_that_makes_a_word_unknown_and_following_it_helps(tmp_path, word):
    table = lines(HEADER, ROW, ("b", "9", word, *"00000"))  # a patient may have the number that means unknown
    message = str(refusal(tmp_path, table))
    assert f"to read {word!r} as unknown, set radiographs: {{unknown_values:" in message
    setting = yaml.safe_load(message.partition(", set ")[2].partition(" in a --config file")[0])
    assert read(tmp_path, table, **setting["radiographs"]).zones_NZ[1, 0] == 4
    assert "radiographs.unknown_values" in str(refusal(tmp_path, lines(HEADER, ("b", "P", "two", *"00000"))))


@pytest.mark.parametrize(
    ("rows", "places", "what"),
    [
        *[((ROW, ("b", "P", "0", "0", "0", cell, "0", "0")), [(3, "left_mid")], repr(cell)) for cell in NO_SCORES],
        ((ROW, ROW), [(3, "FileID")], "duplicate FileID (first in row 2)"),
        ((("", *ROW[1:]), ("a", "", *ROW[2:])), [(2, "FileID"), (3, "PatientID")], "blank"),
        ((("a\x07b", *ROW[1:]),), [(2, "FileID")], "control"),
        ((ROW, ("b", "P", "0")), [(3, "")], "3 cells, the header has 8"),
        ((("b", "P", *"101010101010"),), [(2, "")], "14 cells, the header has 8; quote cells that contain ';'"),
        ((("a", "nan", *ROW[2:]), ("b", "Unknown", *ROW[2:])), [(2, "PatientID"), (3, "PatientID")], "unknown, but"),
        *[((("a", word, *ROW[2:]), ("b", "ND", *ROW[2:])), [(2, "PatientID")], "unknown, but") for word in MISSING],
    ],
    ids=[*NO_SCORES, "duplicate", "blank", "control", "ragged", "decimal commas", "unknown patient", *MISSING],
)
def test_cells_are_refused_with_row_and_column(tmp_path, rows, places, what):
    error = refusal(tmp_path, lines(HEADER, *rows))
    assert [(problem.row, problem.column) for problem in error.problems] == places
    assert all(what in problem.what for problem in error.problems)
    assert f"row {places[0][0]}" in error.render(identities=False)


def test_an_error_names_ten_problems_and_counts_the_rest(tmp_path):
    rows = [(f"f{number}", "P", "9", *"00000") for number in range(25)]
    error = refusal(tmp_path, lines(HEADER, *rows))
    assert [problem.row for problem in error.problems] == [*range(2, 27)]
    assert error.render(identities=False).endswith("and 15 more")


def test_identities_are_shown_only_on_request(tmp_path):
    error = refusal(tmp_path, lines(HEADER, ("Jane Doe", "Doe-7", "9", *"00000")))
    assert "Jane" not in error.render(identities=False)
    assert "Doe" not in str(error)
    assert "Jane Doe" in error.render(identities=True)


@pytest.mark.parametrize("number", ["1,23457E+11", "1.23457e+11", "123456789012345000"])
def test_identities_that_lost_digits_are_not_merged(tmp_path, number):
    rows = [("a", number, *"000000"), ("b", number, *"000000"), ("c", "P1", *"000000")]
    error = refusal(tmp_path, lines(HEADER, *rows))
    assert [(problem.row, problem.column) for problem in error.problems] == [(2, "PatientID"), (3, "PatientID")]
    assert "a spreadsheet dropped digits of this number" in error.problems[0].what
    assert number not in error.render(identities=False)
    files = refusal(tmp_path, lines(HEADER, (number, "P1", *"000000"), (number, "P2", *"000000")))
    assert files.problems[0].what.startswith("duplicate FileID (first in row 2); a spreadsheet dropped digits")


def test_long_numbers_with_all_their_digits_are_patients(tmp_path):
    patients = "1234567890123450", "1234567890123450", "1234567890123451"
    rows = [(name, patient, *"000000") for name, patient in zip("abc", patients, strict=True)]
    assert read(tmp_path, lines(HEADER, *rows)).patient_ids == patients
    assert read(tmp_path, lines(HEADER, ("a", "1,2E+11", *"000000"))).patient_ids == ("1,2E+11",)


@pytest.mark.parametrize("mark", [" ", "-", ".", "", "  "])
def test_required_columns_may_have_other_marks_between_their_words(tmp_path, mark):
    header = (f"File{mark}ID ", f"Patient{mark}ID", *(zone.replace("_", mark).title() for zone in ZONES))
    usual, other = read(tmp_path, lines(HEADER, ROW)), read(tmp_path, lines(header, ROW))
    assert (other.file_ids, other.patient_ids) == (usual.file_ids, usual.patient_ids)
    assert other.has_patients
    assert (other.zones_NZ == usual.zones_NZ).all()
    both = read(tmp_path, lines((*HEADER, f"Right{mark or ' '}Sup"), (*ROW, "3")))
    assert (both.zones_NZ == usual.zones_NZ).all()  # the exact name is meant


def test_columns_are_found_in_any_order_and_case(tmp_path):
    header = ("left_inf", "FILEID", "Right_Sup", "left_sup", "right_mid", "left_mid", "right_inf")
    table = read(tmp_path, lines(header, ("3", "a", "0", "1", "1", "1", "2")))
    assert table.zones_NZ.tolist() == [[0, 1, 1, 1, 2, 3]]


def test_without_patient_ids_each_image_is_its_own_patient(tmp_path):
    table = read(tmp_path, lines(("FileID", *ZONES), ("a", *"000000"), ("b", *"000000")))
    assert not table.has_patients
    assert table.like_patients == ""
    assert table.patient_ids == table.file_ids == ("a", "b")


@pytest.mark.parametrize("other", ["p 7", "P 007", "P7", "P\u00a07", "P\u200b 7", "\uff30 7", "P \u00ad7"])
def test_patients_that_look_alike_are_counted(tmp_path, other):
    rows = [("a", "P 7"), ("b", "P 7"), ("c", other), ("d", "P 70"), ("e", "P 7.0"), ("f", "Q 7")]
    table = read(tmp_path, lines(("FileID", "PatientID", *ZONES), *((*row, *"000000") for row in rows)))
    assert (len(table.patients()[0]), table.num_patients_alike()) == (5, 2)


@pytest.mark.parametrize(
    ("name", "like"),
    [("patient_id", "patient_id"), ("Subject No.", "Subject No."), ("Pat.-Nr.", "Pat.-Nr."), ("PatientAge", "")],
)
def test_a_column_that_may_name_the_patients_is_noticed(tmp_path, name, like):
    table = read(tmp_path, lines(("FileID", name, *ZONES), ("a", "P", *"000000")))
    assert (table.has_patients, table.like_patients) == (False, like)


@pytest.mark.parametrize("place", [1, 5, 8])
@pytest.mark.parametrize("num_between", [0, 2])
def test_a_quote_that_swallows_rows_is_refused(tmp_path, place, num_between):
    names = ("a", *"bc"[:num_between], "d")
    comments = ('"blurred', *["fine"] * num_between, 'by 2"')
    table = [(*HEADER[:place], "comment", *HEADER[place:])]
    for name, comment in zip(names, comments, strict=True):
        row = (name, *ROW[1:])
        table.append((*row[:place], comment, *row[place:]))
    assert "goes on over several rows" in refusal(tmp_path, lines(*table)).render(identities=False)
    report = '"before: 2, 2, 2, 2, 2, 2, blurred\n\nnow: 1, by 2"'  # of one row
    table[1:] = [(*ROW[:place], report, *ROW[place:])]
    assert len(read(tmp_path, lines(*table, separator=","))) == 1


@pytest.mark.parametrize(
    "swallowed",
    [
        ',P2,0,1,2,3,0,1,ok"',
        ',P2,0,1,2,3,0,x,by 2"',
        ',P2,0,1,2,3,0,1,sharp, as ever"',
        ',P2,x,x,x,x,x,x,fine\nd.png,P2,0,1,2,3,0,1,fine\ne.png,P2,x,x,x,x,x,x,by 2"',
    ],
)
def test_one_row_in_quotes_shows_itself_whatever_stands_beside_its_scores(tmp_path, swallowed):
    text = f'{",".join(HEADER)},comment\n{",".join(ROW)},"blurred, dark\nc.png{swallowed}\n'
    assert "goes on over several rows" in refusal(tmp_path, text).render(identities=False)


@pytest.mark.parametrize("place", [1, 8])
@pytest.mark.parametrize(
    "comment",
    ["before, 1, 2, 2, 1, 0, 0, 1, 1\nnow: 0", "before\n1.1.,AB,0,1,2,3,0,1,by AB\nend", "before:\n0, 1, 2\n"],
)
def test_earlier_scores_in_a_comment_are_no_rows(tmp_path, place, comment):
    header, row = (
        (*names[:place], given, *names[place:]) for names, given in ((HEADER, "comment"), (ROW, f'"{comment}"'))
    )
    assert read(tmp_path, lines(header, row, separator=",")).zones_NZ.tolist() == [[0, 1, 2, 3, 4, 2]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (lines(HEADER), "no rows"),
        (lines(HEADER, ROW, separator="/"), "contains none of the required columns"),
        (lines(ROW), "contains none of the required columns"),
        (lines(("films 2024",), HEADER, ROW), "the header seems to be line 2: delete the lines above it"),
        ("# PACS\n\n" + lines(HEADER, ROW, separator=","), "the header seems to be line 3"),
        (lines(HEADER, ROW, separator=" / "), "1 cell when split at ';'"),
        (lines(HEADER, ROW, separator=" / "), "semicolon, comma, tab or |"),
        (lines(HEADER[:-1], ROW[:-1]), "lacks the column left_inf; name them so, one row per image; its columns"),
        (lines(HEADER[1:-1], ROW[1:-1]), "lacks the columns FileID, left_inf"),
        (lines((*HEADER, "left_inf"), (*ROW, "1")), "left_inf more than once; rename or delete all but one"),
        (lines(HEADER, ROW) + '"unclosed', "malformed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer and not the table itself"),
        (b"PK\x03\x04\x00\x00\x00", "the label table is an Excel, OpenDocument or ZIP file"),
        (gzip.compress(lines(HEADER, ROW).encode(), mtime=0), "the label table is compressed with gzip"),
        (bz2.compress(lines(HEADER, ROW).encode()), "the label table is compressed with bzip2"),
        (tarfile.TarInfo("labels.csv").tobuf(), "the label table is a tar archive"),
        (b"PAR1\x15\0\n\x15\0PAR1", "the label table is a Parquet file"),
        ("BZhospital;PAR1\n", "contains none of the required columns"),
        (lines((*HEADER[:-1], "left inf", "left-inf"), (*ROW, "1")), "left_inf more than once"),
        (lines(HEADER).encode("utf-32"), "not text"),
        (lines(HEADER).encode("utf-32-le"), "not text"),
        (lines(HEADER).encode("utf-32-be"), "not text"),
        *[(f"\n<{tag}>", "the label table is a web page, or XML") for tag in ("!DOCTYPE html", "table", "?xml ?")],
        *[(text, "the label table is JSON") for text in ('[{"FileID": "film 1"}]', '{"FileID": ["a"]}', '[\n ["a"]]')],
    ],
)
def test_invalid_tables_are_refused_in_one_line(tmp_path, content, words):
    message = refusal(tmp_path, content).render(identities=False)
    assert words in message
    assert str(tmp_path) in message  # the table's path
    assert "film 1" not in message


def test_a_missing_table_and_a_folder_are_refused(tmp_path):
    for path, words in ((tmp_path / "none.csv", "does not exist"), (tmp_path, "is not a file"), (Path("a\0b"), "not")):
        with pytest.raises(DataError, match=words):
            read_table(path, RadiographsSettings())


CELLS = st.one_of(st.sampled_from(["0", "1", "2.0", "4", "", "nan", "9", "x", '"', ";"]), st.text(max_size=8))
FEW = settings(max_examples=150)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The cost of a table of 1,000 rows."""
    folder = tmp_path_factory.mktemp("large")
    content = lines(HEADER, *((f"film {number}", *ROW[1:]) for number in range(1000)))
    return cost_of(lambda: read(folder, content))


@FEW
@given(content=st.binary(max_size=400))
@example(content=b"\xff\xfe\x00")
@example(content=b"FileID\r\x00;")
def test_any_bytes_give_a_table_or_a_data_error_at_little_cost(tmp_path, large, content):
    def read_any():
        try:
            read(tmp_path, content)
        except DataError as error:
            assert "\n" not in error.render(identities=True)

    assert cost_of(read_any).is_within(large)


@FEW
@given(
    rows=st.lists(st.lists(CELLS, max_size=10), max_size=6),
    separator=st.sampled_from([";", ",", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_any_rows_under_a_sound_header_give_a_table_or_a_data_error(tmp_path, rows, separator, encoding):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([HEADER, *rows])
    try:
        table = read(tmp_path, text.getvalue().encode(encoding, "replace"))
    except DataError as error:
        assert "\n" not in error.render(identities=True)
    else:
        assert len(table) == len(table.patient_ids) == len(table.rows) == len(table.zones_NZ) > 0
        assert len(set(table.file_ids)) == len(table)
        assert set(table.zones_NZ.ravel().tolist()) <= {0, 1, 2, 3, 4}
