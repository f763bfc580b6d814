import os

import pytest
from click.testing import CliRunner

from csi_job.cli.status import _wait_for_study, status
from csi_job.cluster.stages import RELEASE_VARIABLE, STAGES_VARIABLE
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


def test_only_in_a_controllers_pod_is_its_release_the_default(monkeypatch, tmp_path):
    """Elsewhere, as in CI, the variable may name anything."""
    watched = []
    monkeypatch.setattr("csi_job.cluster.api.Cluster", lambda namespace: namespace)
    monkeypatch.setattr("csi_job.cluster.overview.watch_release", lambda _, name, *__, **___: watched.append(name))
    monkeypatch.setenv(RELEASE_VARIABLE, "foo")
    outside = CliRunner().invoke(status, ["--work", os.fspath(tmp_path)])
    assert isinstance(outside.exception, NoStudyError)
    monkeypatch.setenv(STAGES_VARIABLE, "foo-stages")
    CliRunner().invoke(status, [], catch_exceptions=False)
    assert watched == ["foo"]
