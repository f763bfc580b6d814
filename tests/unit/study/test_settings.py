import pytest

from csi_job.config import load_settings
from csi_job.storage.settings import StorageSettings
from csi_job.study.record import read_record
from csi_job.study.settings import StudySettings
from tests.support.studies import define, work_on

AUTO = {"study.sampler": "auto", "study.pruner": "auto"}


@pytest.mark.parametrize(
    ("objective", "resolved"), [("f1", ("tpe_per_cost", "none")), ("f1-and-cost", ("tpe", "median"))]
)
def test_auto_depends_on_the_objective_and_so_on_that_of_the_study(objective, resolved, storage, tmp_path):
    settings = StudySettings(objective=objective, sampler="auto", pruner="auto")
    assert (settings.sampler, settings.pruner, settings.workers) == (*resolved, "auto")
    assert StudySettings.model_validate(settings.model_dump()) == settings
    define(storage, objective=objective)
    record = read_record(StorageSettings(), tmp_path, "toy")
    loaded = load_settings(AUTO, None, {}).over(record).settings.study
    assert (loaded.sampler, loaded.pruner) == resolved
    study = define(storage, objective=objective, sampler="auto", pruner="auto")
    work_on(study, tmp_path, objective=objective, num_trials=1, max_epochs=1, sampler="auto", pruner="auto")
    assert [study.trials[0].user_attrs[name] for name in ("sampler", "pruner")] == [*resolved]
