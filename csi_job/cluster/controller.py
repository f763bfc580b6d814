"""The controller: makes the stages' Jobs one after the other, and ends the search.

It holds no state. What it knows is in the cluster (the Jobs and their annotations) and in the study, so that it
may be killed anywhere and goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from csi_job.cluster.api import Cluster, UnreachableError
from csi_job.cluster.budget import Budget
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stage_run import StageRun
from csi_job.cluster.stages import STAGES, Release, Stage, read_release
from csi_job.cluster.study_watch import StudyWatch, story_of
from csi_job.config import Settings
from csi_job.logs import get_logger

logger = get_logger(__name__)
POLL_S: Final = 2.0
TERMINATION_LOG: Final = Path("/dev/termination-log")


@dataclass(frozen=True)
class ControllerOptions:
    """What the chart tells the controller."""

    stages: str
    """Name of the ConfigMap that holds the stages."""
    digest: str
    """Digest of what this controller acts on; another one in the ConfigMap has a controller of its own."""
    missing_s: float = 120.0
    """Seconds that a pod may wait for a claim or an image that is not there."""
    max_rounds: int = 10
    """Times the search is made anew."""
    budget: Budget = field(default_factory=Budget)
    """Limits of the search."""


def run_controller(cluster: Cluster, options: ControllerOptions, settings: Settings) -> str:
    """Bring a release to its end: cache, search, final model.

    Returns:
        the outcome in one line.

    Raises:
        StageFailedError: a stage failed for good.

    """
    watch = StudyWatch(settings)
    for place in range(len(STAGES)):
        if not _run_stage(cluster, options, watch, place):
            return "another controller has taken over, or the release was uninstalled"
    status = watch.look()
    told = story_of(status) if status else "the study is finished"
    return f"study {settings.study.name}: {told}; model and report are under models/"


def _run_stage(cluster: Cluster, options: ControllerOptions, watch: StudyWatch, place: int) -> bool:
    """Bring one stage to its end; return False where this controller is no longer the one."""
    run: StageRun | None = None
    while True:
        try:
            release = read_release(cluster, options.stages)
            if release is None or release.digest != options.digest:
                return False
            run = run or _stage_run(cluster, options, watch, release, release.stages[place])
            if run.step():
                return True
        except UnreachableError as error:
            logger.warning("%s; trying again", error)
        time.sleep(POLL_S)


def _stage_run(
    cluster: Cluster, options: ControllerOptions, watch: StudyWatch, release: Release, stage: Stage
) -> StageRun:
    common: dict[str, Any] = {"me": options.digest, "missing_s": options.missing_s}
    if stage.name != "search":
        return StageRun(cluster, release, stage, **common)
    return SearchRun(
        cluster, release, stage, **common, watch=watch, budget=options.budget, max_rounds=options.max_rounds
    )


def tell_outcome(outcome: str, path: Path = TERMINATION_LOG) -> None:
    """Write the outcome where `kubectl describe` shows it."""
    if path.exists():
        path.write_text(outcome, encoding="utf-8")
