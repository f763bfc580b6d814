"""The page of a study, and changes to the files it is made of."""

import json
import shutil

import pytest

from csi_job.report.page.page import write_report
from tests.unit.report.conftest import read_page


def report(view, work):
    return read_page(write_report(view, work))


@pytest.fixture(scope="module")
def text(view, written, tmp_path_factory):
    """The text of the report of an unchanged work folder."""
    return report(view, shutil.copytree(written, tmp_path_factory.mktemp("text"), dirs_exist_ok=True)).text


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
