"""What the page is made of: sections of tables, figures, definitions and commands, as data for the templates."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

from csi_job.html.plot import Plot

MAX_CHARACTERS = 20  # of a cell beside three others on a narrow screen
Tone = Literal["plain", "good", "warning"]


@dataclass(frozen=True)
class KeyFigure:
    """One number to see first: what it is, its value, and what qualifies it."""

    label: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """Rows of text; columns in `numbers` are aligned right, rows in `marks` carry a label.

    A reader may sort the rows if `is_sortable`, which needs `has_sortable` of the page.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    caption: str = ""
    marks: dict[int, str] = field(default_factory=dict)
    is_sortable: bool = False

    @cached_property
    def is_stacked(self) -> bool:
        """Whether a narrow screen shows each row as a block, since the columns do not fit side by side."""
        longest = max((len(cell) for row in self.rows for cell in row), default=0)
        return not self.is_sortable and len(self.columns) > (3 if longest > MAX_CHARACTERS else 4)


@dataclass(frozen=True)
class Definitions:
    """Terms with their meanings."""

    kind: ClassVar[str] = "definitions"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Commands or settings to copy."""

    kind: ClassVar[str] = "code"
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot, or the sentence that says why there is none; `has_title` if the section has several."""

    kind: ClassVar[str] = "figure"
    plot: Plot
    has_title: bool = False


Block = Table | Definitions | Code | Figure


@dataclass(frozen=True)
class PageSection:
    """One part of the page: sentences first, then the evidence."""

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    warnings: tuple[str, ...] = ()
