"""Workers that really train under faults: tiny models on tiny phantoms."""

from pathlib import Path
from typing import Any

from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.settings import CacheSettings
from csi_job.phantoms.phantom import write_phantoms
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.study.objective import training_objective
from csi_job.trial.settings import TrialSettings
from csi_job.trial.space import SearchSpace
from tests.faults.harness.worker import Plan, Task, run_observed
from tests.support.processes import preload

preload("tests.faults.harness.training")
SPACE = SearchSpace.model_validate({"model_arch": {"value": "Custom_1"}, "batch_size": {"value": 16}})
BASELINE = {"model_arch": "Custom_1", "learning_rate": 1e-3, "batch_size": 16}


def phantom_cache(folder: Path, num_images: int = 60, side_px: int = 32) -> Path:
    """Write phantoms, build their cache, and return its folder."""
    write_phantoms(folder / "data", num_images, seed=7)
    radiographs = RadiographsSettings(labels=folder / "data" / "labels.csv", images=folder / "data" / "images")
    return build_cache(radiographs, CacheSettings(image_size_px=side_px, num_workers=1), folder)


def run_training(arguments: dict[str, Any]) -> None:
    """Run a worker process that trains."""
    run_observed(arguments, _task)


def _task(plan: Plan) -> Task:
    import torch

    if plan.cache is None:
        message = "there is no cache to train on"
        raise ValueError(message)
    torch.set_num_threads(1)
    cache = Cache.open(plan.cache)
    objective = training_objective(cache.train, cache.validation, TrialSettings(device="cpu"))
    return Task(SPACE, BASELINE, cache.info.key, lambda _: objective)
