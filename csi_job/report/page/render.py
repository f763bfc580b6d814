"""Pages from templates: one file each, everything inside, nothing loaded from anywhere."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from csi_job.report.figures.style import Plot


def render_page(template: str, **content: Any) -> str:
    """Return a page as HTML; text in `content` is escaped, plotly.js is put in once.

    Args:
        template: file name under `templates/`.
        content: what the template shows.

    """
    return _environment().get_template(template).render(**content)


def plot_json(plot: Plot) -> Markup:
    """Return a figure as JSON that no text in it can break out of its script element."""
    text = json.dumps(plot.figure, allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("csi_job.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(plotly_js=_plotly_js, asset=_asset)
    environment.filters["plot_json"] = plot_json
    return environment


@cache
def _plotly_js() -> Markup:
    """Return plotly.js from the installed package, read without importing plotly itself."""
    return Markup((files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"))  # noqa: S704


@cache
def _asset(name: str) -> Markup:
    return Markup((files("csi_job.report.page") / "templates" / name).read_text(encoding="utf-8"))  # noqa: S704
