import json
from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution

from csi_job.cache.dataset import Cache
from csi_job.config import Settings
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.final_model.hyperparams import read_hyperparams
from csi_job.final_model.seeds import Recipe, SeedResult, SeedTrainer
from csi_job.final_model.settings import FinalModelSettings
from csi_job.final_model.train import FinalTraining
from csi_job.storage.storage import open_storage
from csi_job.study.definition import define_study
from csi_job.study_settings import definition_of
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.model import build_model
from csi_job.trial.settings import TrialSettings
from csi_job.work_folder import WorkFolder

TRIAL = TrialSettings(device="cpu")
SMALL = Hyperparameters(model_arch="Custom_1", batch_size=16, patience=5).to_params()
BASELINE = Hyperparameters.from_params(SMALL | {"learning_rate": 1e-4})
QUICK = EvaluationSettings(num_bootstrap=100)


def recipe(max_epochs: int = 2, **changes) -> Recipe:
    return Recipe(Hyperparameters.from_params(SMALL | changes), max_epochs)


def study_of(*trials: tuple[dict, float | list[float]], max_epochs: int = 2, name: str = "s") -> optuna.Study:
    """A study in memory with these complete trials: changed parameters and values."""
    two = isinstance(trials[0][1], list)
    directions = ["maximize", "minimize"] if two else ["maximize"]
    study = optuna.create_study(study_name=name, directions=directions)
    for changes, values in trials:
        params = SMALL | changes
        fixed = {key: CategoricalDistribution((value,)) for key, value in params.items()}
        attributes = {"max_epochs": max_epochs}
        given = {"values": values} if two else {"value": values}
        trial = optuna.trial.create_trial(params=params, distributions=fixed, user_attrs=attributes, **given)
        study.add_trial(trial)
    return study


def stored_study(work: Path, cache_folder: Path, *trials: tuple[dict, float], max_epochs: int = 2) -> optuna.Study:
    """The same in the database of a work folder, on a cache; opened again if it is there."""
    settings = Settings(work=work, study={"name": "s", "num_trials": len(trials)}, trial={"device": "cpu"})
    storage = open_storage(settings.storage, work, create=True)
    study = define_study(storage, definition_of(settings, cache_folder.name))
    if len(study.get_trials(deepcopy=False)) == 1:  # the baseline, waiting
        for trial in study_of(*trials, max_epochs=max_epochs).get_trials():
            study.add_trial(trial)
    return study


def write_hyperparams(path: Path, **changes) -> Path:
    path.write_text(json.dumps({"study": "s", "trial": 0, "value": 0.5, "params": SMALL, "max_epochs": 2} | changes))
    return path


def request_of(
    work: Path, cache_folder: Path, study=None, baseline=BASELINE, trial=TRIAL, evaluation=QUICK, **settings
) -> FinalTraining:
    """Two seeds of two candidates, in a work folder with its file of hyperparameters."""
    path = work / "b.json"
    if not path.exists():
        write_hyperparams(path)
    file = read_hyperparams(path, default_study="s", default_max_epochs=2)
    chosen = FinalModelSettings(**({"num_candidates": 2, "num_seeds": 2} | settings))
    cache = Cache.open(cache_folder)
    return FinalTraining(WorkFolder(work), cache, file, study, baseline, chosen, trial, evaluation)


def kept(seed: int, val_f1: float, gflops: float = 1.0) -> SeedResult:
    return SeedResult(seed, val_f1, 1, 2, 10, gflops, 16, (0.1, val_f1), "0" * 64)


def diverging(folder: Path) -> TrialSettings:
    """Settings whose starting weights are so large that the first loss is not finite."""
    state = build_model("Custom_1").state_dict()
    huge = {name: torch.full_like(t, 1e38) if t.is_floating_point() else t for name, t in state.items()}
    torch.save(huge, folder / "huge.pth")
    return TRIAL.model_copy(update={"pretrained": str(folder / "huge.pth")})


@pytest.fixture
def trainer(cache_folder, tmp_path):
    return SeedTrainer(tmp_path / "candidates ü", Cache.open(cache_folder), TRIAL)
