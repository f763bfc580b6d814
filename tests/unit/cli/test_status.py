import pytest

from csi_job.cli.status import _wait_for_study
from csi_job.errors import ConfigurationError, NoStudyError


def test_watching_waits_for_a_study_that_does_not_exist_yet(capsys):
    missing = [NoStudyError("there is no study of this name")] * 3
    study = object()

    def opened():
        if missing:
            raise missing.pop()
        return study

    assert _wait_for_study(opened, 0.01) is study
    assert capsys.readouterr().err == "there is no study of this name; waiting for it\n"


def test_watching_does_not_wait_for_a_mistake_to_vanish():
    def opened():
        raise ConfigurationError("this database cannot hold a study")

    with pytest.raises(ConfigurationError):
        _wait_for_study(opened, 0.01)
