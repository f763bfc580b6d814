import pytest

from csi_job.terminal.table import titled_table
from tests.unit.terminal.conftest import shown

HEADINGS = ("metric", "value", "95% interval", "better in", "note")
CELLS = ("Zones: accuracy", "0.417", "0.333 to\n0.500", "", "undefined in 156 of 2000 resamples")


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_shows_every_word_of_a_table(width):
    table = titled_table("the test set", *HEADINGS, left=("metric", "note"))
    table.add_row(*CELLS)
    expected = "the test set - metric: Zones: accuracy; value: 0.417; 95% interval: 0.333 to 0.500; note: "
    assert " ".join(shown(table, width).split()) == f"{expected}{CELLS[-1]}"
