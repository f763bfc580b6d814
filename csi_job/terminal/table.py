"""The two kinds of tables on a terminal."""

from collections.abc import Collection
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

NARROW: Final = 72  # columns; all tables fit into 74, a panel on a terminal of 80


def plain_table(*headings: str, left: Collection[str] = (), title: str = "") -> Table:
    """Return a table without lines; columns in `left` hold text, all others numbers, which are aligned right."""
    table = _Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, title_justify="left")
    table.title = title or None
    return _with_columns(table, headings, left)


def titled_table(title: str, *headings: str, left: Collection[str] = ()) -> Table:
    """Return a table with a bold title and a line below its headings; `left` as in `plain_table`."""
    table = _Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    return _with_columns(table, headings, left)


def _with_columns(table: Table, headings: Collection[str], left: Collection[str]) -> Table:
    for heading in headings:
        if heading in left:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


class _Table(Table):
    """A list on a narrow terminal, where a table would cut numbers and drop columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= NARROW:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text(str(self.title), style="bold")
        for row, *cells in zip(self.rows, *(column.cells for column in self.columns), strict=True):
            texts = [" ".join(str(cell).split()) for cell in cells]
            parts = [f"{column.header}: {text}" for column, text in zip(self.columns, texts, strict=True) if text]
            yield Text(f"- {'; '.join(parts)}", style=row.style or "")
