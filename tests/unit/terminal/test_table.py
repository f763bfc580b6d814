import pytest

from csi_job.terminal.table import titled_table
from tests.unit.terminal.conftest import shown

HEADINGS = ("metric", "value", "95% interval", "better in", "note")
CELLS = ("Zones: accuracy", "0.417", "0.333 to\n0.500", "", "undefined in 156 of 2000 resamples")


@pytest.mark.parametrize("width", [20, 40, 60, 71])
def test_a_narrow_terminal_shows_every_word_of_a_table(width):
    table = titled_table("the [test] set", *HEADINGS, left=("metric", "note"))
    table.add_row(*CELLS)
    expected = "the [test] set - metric: Zones: accuracy; value: 0.417; 95% interval: 0.333 to 0.500; note: "
    assert " ".join(shown(table, width).split()) == f"{expected}{CELLS[-1]}"


def test_a_table_has_columns_on_a_terminal_of_72():
    table = titled_table("[b] :x:", *HEADINGS[:2], left=("metric",))
    table.add_row("[bold]", "0.417")
    lines = [line.split() for line in shown(table, 72).splitlines()]
    assert lines[0] == ["[b]", ":x:"]
    assert ["metric", "value"] in lines
    assert ["[bold]", "0.417"] in lines
