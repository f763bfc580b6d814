import jinja2
import pytest

from csi_job.html.plot import Plot
from csi_job.html.render import plot_json, render


def test_text_is_escaped_and_a_forgotten_value_is_an_error():
    content = {
        "title": "<b>",
        "study_name": "&",
        "plot": Plot("key", "title", missing="<i>"),
        "links": [],
        "has_plots": False,
    }
    page = render("csi_job.report.page", "plot.html.j2", **content, footer="f")
    assert "&lt;b&gt;" in page
    assert "&lt;i&gt;" in page
    with pytest.raises(jinja2.UndefinedError):
        render("csi_job.report.page", "plot.html.j2", **content)


def test_numbers_that_json_does_not_know_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        plot_json(Plot("key", "title", figure={"data": [float("nan")]}))
