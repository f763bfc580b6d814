"""Render templates: an HTML page is one file that loads nothing from anywhere."""

import json
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from csi_job.files import write_file
from csi_job.html.plot import Plot

PLOTLY: Final = "plotly-cartesian.min.js"


def render(package: str, template: str, **content: Any) -> str:
    """Render a template; in HTML, text in `content` is escaped.

    A page with `has_plots` holds plotly.js, or loads the file `plotly_src` beside it.

    Args:
        package: its `templates/` folder is searched first, then the shared one of this package.
        template: file name, e.g. `report.html.j2`.
        content: what the template shows.
    """
    return _environment(package).get_template(template).render(**content)


def share_plotly(folder: Path) -> str:
    """Write plotly.js into a folder for the pages in it, unless it is there, and return its name for `plotly_src`."""
    text, path = _verbatim("plotly", PLOTLY), folder / PLOTLY
    with suppress(OSError):
        if path.stat().st_size == len(text.encode()):
            return PLOTLY
    return write_file(path, text).name


def plot_json(plot: Plot) -> Markup:
    """Return a figure as JSON that cannot break out of its script element."""
    text = json.dumps(plot.figure, allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("csi_job.html")]),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        plotly_js=lambda: _verbatim("plotly", PLOTLY), asset=lambda name: _verbatim("templates", name)
    )
    environment.filters["plot_json"] = plot_json
    return environment


@cache
def _verbatim(folder: str, name: str) -> Markup:
    """Return the text of one of our own files; it is not escaped."""
    return Markup(files("csi_job.html").joinpath(folder, name).read_text(encoding="utf-8"))  # noqa: S704
