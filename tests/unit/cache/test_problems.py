import csv
import stat

import pytest

from csi_job.cache.build import build_cache
from csi_job.cache.problems import problems_listed
from csi_job.errors import DataError, Problem
from tests.unit.cache.conftest import images_of, settings_of


def test_problems_are_listed_and_raised_with_pseudonyms(tmp_path):
    (tmp_path / "cache").mkdir()
    torn = Problem('torn; "half"', row=3, file_id="Jane Doe", image="a/Jane Doe.png")
    problems = [torn, Problem("score 9", row=4, column="=A1")]
    with pytest.raises(DataError) as caught, problems_listed(tmp_path):
        raise DataError("2 images are wrong", problems=problems)
    rows = list(csv.reader((tmp_path / "problems.csv").open(), delimiter=";"))
    assert rows[1:] == [["3", "", "Jane Doe", "a/Jane Doe.png", 'torn; "half"'], ["4", "'=A1", "", "", "score 9"]]
    assert stat.S_IMODE((tmp_path / "problems.csv").stat().st_mode) == 0o600
    assert [len(problem.pseudonym) for problem in caught.value.problems] == [12, 0]
    assert str(tmp_path / "problems.csv") in str(caught.value)
    assert "Jane" not in caught.value.render(identities=False)
    assert "row 3 (Jane Doe, a/Jane Doe.png)" in caught.value.render(identities=True)


def test_an_error_without_problems_is_unchanged(tmp_path):
    error = DataError("nothing listed")
    with pytest.raises(DataError) as caught, problems_listed(tmp_path):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_the_error_is_raised_even_if_nothing_can_be_written(tmp_path):
    with pytest.raises(DataError, match="1 image is wrong"), problems_listed(tmp_path / "none"):
        raise DataError("1 image is wrong", problems=[Problem("torn", row=3, file_id="Jane Doe")])


def test_missing_images_are_listed_in_the_work_folder_too(copied, cache, tmp_path):
    images_of(copied)[2].unlink()
    with pytest.raises(DataError, match="1 of 30 images cannot be used"):
        build_cache(settings_of(copied), cache, tmp_path)
    assert "jane-doe-02;;no image of this name" in (tmp_path / "problems.csv").read_text()
