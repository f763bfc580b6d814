import jinja2
import pytest

from csi_job.evaluation.decision import Decision
from csi_job.html.blocks import PageSection, Table
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


def test_the_cost_of_a_table_grows_with_its_cells_and_not_with_their_square():
    num_read = 0

    class Cell(str):
        __slots__ = ()

        def __len__(self):
            nonlocal num_read
            num_read += 1
            return super().__len__()

    table = Table(("a", "b", "c", "d", "e"), tuple(tuple(Cell(n) for n in range(5)) for _ in range(20)))
    content = {"title": "t", "study_name": "s", "state": "", "answer": Decision(""), "key_figures": [], "footer": "f"}
    sections = [PageSection("key", "title", blocks=(table,))]
    flags = {"links": [], "has_sortable": False, "has_plots": False}
    page = render("csi_job.report.page", "report.html.j2", **content, **flags, sections=sections)
    assert page.count('<td data-column="e"') == 20
    assert num_read == 2 * 100
