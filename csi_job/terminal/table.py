"""The two kinds of tables on a terminal."""

from collections.abc import Collection

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(*headings: str, left: Collection[str] = (), title: str = "") -> Table:
    """Return a table without lines; columns in `left` hold text, all others numbers, which are aligned right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, title_justify="left")
    table.title = title or None
    return _with_columns(table, headings, left)


def titled_table(title: str, *headings: str, left: Collection[str] = ()) -> Table:
    """Return a table with a bold title and a line below its headings; `left` as in `plain_table`."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    return _with_columns(table, headings, left)


def _with_columns(table: Table, headings: Collection[str], left: Collection[str]) -> Table:
    for heading in headings:
        if heading in left:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table
