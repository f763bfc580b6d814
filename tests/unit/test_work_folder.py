"""The paths under the work folder, as they are documented."""

from pathlib import Path

import pytest

from csi_job.errors import ConfigurationError
from csi_job.work_folder import WorkFolder


def test_paths_are_as_documented():
    folder = WorkFolder(Path("w"))
    own = (folder.database, folder.problems, folder.cache("k"), folder.identity_key)
    assert [path.as_posix() for path in own] == ["w/studies.db", "w/problems.csv", "w/cache/k", "w/cache/identity.key"]
    assert folder.trial_checkpoints("s", 3).as_posix() == "w/checkpoints/s/trial-3"
    assert folder.wandb.as_posix() == "w/wandb"
    hyperopt = (folder.best_params("s"), folder.optimized_params("s"), folder.report("s"), folder.study_settings("s"))
    assert {path.parent.as_posix() for path in hyperopt} == {"w/models/hyperopt"}
    names = ["s_best_params.json", "s_optimized_params.json", "s_report.html", "s_settings.yaml"]
    assert [path.name for path in hyperopt] == names
    assert folder.candidates("s").as_posix() == "w/models/candidates/s"
    assert folder.latest.optimized_model.as_posix() == "w/models/optimized_model.safetensors"
    assert folder.latest.baseline_model.as_posix() == "w/models/baseline_model.safetensors"
    assert folder.final("s").evaluations.as_posix() == "w/models/final/s/evaluation"


NAMED = ["cache", "checkpoints", "best_params", "optimized_params", "report", "candidates", "final", "wandb_summary"]


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "/etc", "a/b", "..\\..", "a\0"])
@pytest.mark.parametrize("method", NAMED)
def test_a_name_that_leads_out_is_refused(method, name):
    with pytest.raises(ConfigurationError, match="leads out of the work folder"):
        getattr(WorkFolder(Path("w")), method)(name)
