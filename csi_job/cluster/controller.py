"""The controller: creates the stages' Jobs in order, and ends the search.

It is stateless. All it knows is in the cluster (the Jobs and their annotations) and in the study, so it can be killed
at any point and resume.
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
from csi_job.cluster.study_watch import StudyWatch, summarize
from csi_job.config import Settings
from csi_job.logs import get_logger

logger = get_logger(__name__)
POLL_S: Final = 2.0
TERMINATION_LOG: Final = Path("/dev/termination-log")


@dataclass(frozen=True)
class ControllerOptions:
    """The controller's options, as given by the chart."""

    stages: str
    """Name of the ConfigMap that holds the stages."""
    digest: str
    """Digest of this controller's configuration. If the ConfigMap shows another one, a newer controller is in charge
    and this one exits."""
    missing_s: float = 120.0
    """Seconds a pod may wait for a volume claim or an image that does not exist."""
    max_rounds: int = 10
    """How often the search Job may be recreated."""
    budget: Budget = field(default_factory=Budget)
    """Limits of the search."""


def run_controller(cluster: Cluster, options: ControllerOptions, settings: Settings) -> str:
    """Run a release to its end: cache, search, final model.

    Returns:
        the outcome in one line.

    Raises:
        StageFailedError: a stage failed permanently.

    """
    watch = StudyWatch(settings)
    for place in range(len(STAGES)):
        if not _run_stage(cluster, options, watch, place):
            return "another controller has taken over, or the release was uninstalled"
    status = watch.status()
    summary = summarize(status) if status else "the study is finished"
    return f"study {settings.study.name}: {summary}; model and report are under models/"


def _run_stage(cluster: Cluster, options: ControllerOptions, watch: StudyWatch, place: int) -> bool:
    """Run one stage to its end; return False if this controller is no longer in charge."""
    run: StageRun | None = None
    while True:
        try:
            release = read_release(cluster, options.stages)
            if release is None or release.digest != options.digest:
                return False
            run = run or _stage_run(cluster, options, watch, release, release.stages[place])
            if run.reconcile():
                return True
        except UnreachableError as error:
            logger.warning("%s; retrying", error)
        time.sleep(POLL_S)


def _stage_run(
    cluster: Cluster, options: ControllerOptions, watch: StudyWatch, release: Release, stage: Stage
) -> StageRun:
    common: dict[str, Any] = {"controller_digest": options.digest, "missing_s": options.missing_s}
    if stage.name != "search":
        return StageRun(cluster, release, stage, **common)
    limits: dict[str, Any] = {"budget": options.budget, "max_rounds": options.max_rounds}
    return SearchRun(cluster, release, stage, watch=watch, **limits, **common)


def write_termination_message(outcome: str, path: Path = TERMINATION_LOG) -> None:
    """Write the outcome where `kubectl describe` shows it, if this is a pod."""
    if path.exists():
        path.write_text(outcome, encoding="utf-8")
