import pytest

from csi_job import errors

ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.CsiJobError)]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_one_line_whatever_its_parts_hold(error):
    message = str(error("a\nb", got="c\r\nd", allowed=["e", "f\v"], hint="g\n\th"))
    assert message == "a b, got 'c d'; allowed: e, f ; g h"


def test_a_problem_is_one_line_whatever_its_file_is_named():
    problem = errors.Problem("damaged", row=7, file_id="new\nline", image="esc\x1b[31m.png", identifying="bad\udcff")
    assert problem.render(identities=True) == "row 7 (new?line, esc?[31m.png): damaged; bad?"


def test_the_exit_codes_tell_a_wrong_setting_and_a_failed_study_from_other_errors():
    codes = {code: {error.__name__ for error in ERRORS if error.exit_code == code} for code in (1, 2, 3)}
    assert codes[2] == {"ConfigurationError", "NoStudyError", "DataError", "ModelFileError"}
    assert codes[3] == {"StudyFailedError", "StageFailedError"}
    assert set.union(*codes.values()) == {error.__name__ for error in ERRORS}
