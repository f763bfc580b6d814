"""The look that all figures share: colours that colour-blind readers can distinguish, on light and dark paper alike.

Text, grid and background take their colours from the style sheet of the page, so that they follow its light or dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]

# Each has a contrast of at least 3 : 1 on white and on the dark page.
BLUE, GREY, RED, PURPLE, TEAL, GOLD = "#3b82c4", "#848e9a", "#d5552b", "#9a6cc4", "#16967f", "#c47a0a"


@dataclass(frozen=True)
class Plot:
    """One figure of a page, or the reason why there is none.

    Args:
        key: part of file names, e.g. `optimization_history`.
        title: heading above the figure.
        caption: what is seen, in one or two sentences.
        figure: the figure; None where `missing` says what it waits for.
        missing: one sentence.
        warnings: what the reader must keep in mind, e.g. that few trials stand behind it.
        is_wide: many small parts lie side by side, so a narrow screen scrolls rather than squeezes.
    """

    key: str
    title: str
    caption: str = ""
    figure: Figure | None = None
    missing: str = ""
    warnings: tuple[str, ...] = ()
    is_wide: bool = False


def layout(x_title: str, y_title: str, *, height_px: int = 420, **more: Any) -> dict[str, Any]:
    """Return the layout that all figures share, with titles of the axes and `more` on top."""
    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": GREY}
    return {
        "height": height_px,
        "margin": {"l": 56, "r": 16, "t": 76, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#22303c", "bordercolor": "#22303c", "font": {"color": "#ffffff"}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "xaxis": {**axis, "title": axis_title(x_title), "showgrid": False},
        "yaxis": {**axis, "title": axis_title(y_title)},
        **more,
    }


def axis_title(text: str) -> dict[str, Any]:
    """Return the title of an axis in the size of its labels."""
    return {"text": text, "font": {"size": 13}, "standoff": 8}


def line(xs: Sequence[Any], ys: Sequence[Any], color: str, **more: Any) -> dict[str, Any]:
    """Return one trace of lines; None in `xs` and `ys` separates one line from the next."""
    style = {"color": color, "width": more.pop("width", 2), **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "x": list(xs), "y": list(ys), "line": style, **more}
