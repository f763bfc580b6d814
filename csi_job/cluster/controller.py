"""The controller: creates the stages' Jobs in order, and ends the search.

It is stateless. All it knows is in the cluster (the Jobs and their annotations) and in the study, so it can be killed
at any point and resume.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from csi_job.cluster.api import Cluster, NotAllowedError, NotYetError, Object, UnreachableError
from csi_job.cluster.back_off import OwnBackOff
from csi_job.cluster.budget import Budget, enforce, unfinished_searches
from csi_job.cluster.refusals import check_stages, database_problem, job_problem, why_not_started, with_remedy
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stage_run import JOB_NAME, CacheRun, StageRun, resume_search
from csi_job.cluster.stages import CONTROLLER, STAGES, Release, is_paused, job_result, read_release, selector
from csi_job.cluster.study_watch import StudyWatch, summarize
from csi_job.config import Settings
from csi_job.errors import ClusterError, CsiJobError, StageFailedError, StopRequestedError
from csi_job.files import exists
from csi_job.logs import RepeatedWarnings
from csi_job.study.settings import check_objective

logger = logging.getLogger(__name__)
BEING_DELETED: Final = "because it is being terminated"  # in the answer to a request to create an object
POLL_S: Final = 2.0
RESTORE: Final = "helm upgrade restores the controller's account and rights"
UPGRADE_S: Final = 30.0  # Helm takes less between the new stages and their controller
TERMINATION_LOG: Final = Path("/dev/termination-log")
Step = Callable[[Release], bool]  # what to do next for a release; returns whether nothing is left to do


@dataclass(frozen=True)
class ControllerOptions:
    """The controller's options, as given by the chart."""

    stages: str
    """Name of the ConfigMap that holds the stages."""
    digest: str
    """Digest of this controller's configuration. Once the controller of another one in the ConfigMap runs, this one
    exits."""
    missing_s: float = 120.0
    """Seconds to wait for what does not exist or is refused: a claim, an image, a class, a quota, a permission."""
    max_rounds: int = 10
    """How often the search Job may be recreated."""
    budget: Budget = field(default_factory=Budget)
    """Limits of the search."""
    metrics_port: int | None = None
    """Port on which to serve metrics for Prometheus; None: none."""


def run_controller(cluster: Cluster, options: ControllerOptions, settings: Settings) -> str:
    """Run a release to its end: the API server's check of every stage, then cache, search and final model.

    Returns:
        the outcome in one line.

    Raises:
        ConfigurationError: the API server refuses a stage's Job, or the search has no sampler.
        StageFailedError: a stage failed permanently.
    """
    from csi_job.study.sampling import make_sampler

    record = partial(_record, cluster, options)
    watch = StudyWatch(settings, record)
    leader = _Leader(cluster, options, watch, record)
    steps: list[Step] = [
        partial(_take_over, cluster),
        partial(check_stages, cluster),
        *(_stage_step(cluster, options, watch, stage) for stage in STAGES),
    ]
    try:
        # Otherwise the first stage finds out, after it has built the cache.
        check_objective(settings.study)
        make_sampler(settings.study, settings.space)
        if not all(map(leader.complete, steps)):
            gone = f"{options.stages} was deleted; if by hand, helm upgrade restores it"
            return f"another controller is in charge, or {gone}"
    except StopRequestedError:
        _end_with_namespace(cluster, options)
        raise
    except CsiJobError as error:
        with suppress(ClusterError):
            leader.complete(partial(leader.leave_search, str(error)))
        record("Failed", str(error), is_warning=True)  # once the API server is back
        raise
    status = watch.status()
    summary = summarize(status) if status else "the study is finished"
    outcome = f"study {settings.study.name}: {summary}; model and report are under models/"
    record("Finished", outcome)
    return outcome


def _take_over(cluster: Cluster, release: Release) -> bool:
    """Delete the Jobs of earlier controllers, and let the others end with the release.

    After a failed upgrade, Helm forgets one of them. A later one is never deleted: Helm may have created it just now.
    """
    with suppress(NotAllowedError):
        jobs = cluster.jobs(selector(release.name, CONTROLLER))
        own = [job for job in jobs if job["metadata"]["name"] == release.controller]
        for job in jobs:
            if own and job["metadata"]["creationTimestamp"] < own[0]["metadata"]["creationTimestamp"]:
                cluster.delete("Job", job["metadata"]["name"])
                logger.info("deleted %s, the Job of an earlier controller", job["metadata"]["name"])
            else:
                _adopt(cluster, release, job)
    return True


def _adopt(cluster: Cluster, release: Release, controller: Object) -> None:
    """Let Kubernetes delete a controller's Job with the release's ConfigMap, even if Helm has forgotten it."""
    if "ownerReferences" not in controller["metadata"]:
        owned = {"metadata": {"ownerReferences": [dict(release.owner)]}}
        cluster.patch("Job", controller["metadata"]["name"], owned)


def _record(
    cluster: Cluster, options: ControllerOptions, reason: str, message: str, *, is_warning: bool = False
) -> None:
    """Record an Event, if the API server and the release are there."""
    with suppress(ClusterError):
        if release := read_release(cluster, options.stages):
            release.record(cluster, reason, message, is_warning=is_warning)


def _serve_metrics(options: ControllerOptions, watch: StudyWatch) -> Callable[[Cluster, Release], None]:
    """Return what refreshes the metrics, if they are wanted; their library is imported only then."""
    if options.metrics_port is None:
        return lambda *_: None
    from csi_job.cluster.metrics import Metrics

    metrics = Metrics(options.metrics_port)
    return lambda cluster, release: metrics.refresh(cluster, release, watch)


class _Leader:
    """Runs the release for as long as this controller is in charge of it.

    Helm writes the new stages first and creates their controller last. Until that one runs, which it may never do, this
    controller keeps the stages that it knows.
    """

    def __init__(
        self, cluster: Cluster, options: ControllerOptions, watch: StudyWatch, record: Callable[..., None]
    ) -> None:
        """Know no stages yet."""
        self._cluster, self._options, self._watch, self._record = cluster, options, watch, record
        self._own, self._refresh_metrics = OwnBackOff(cluster), _serve_metrics(options, watch)
        self._last: Release | None = None
        self._replaced_since_s: float | None = None
        self._warnings = RepeatedWarnings(logger)

    def complete(self, step: Step) -> bool:
        """Repeat a step until it is complete; return False if this controller is no longer in charge."""
        refused_at, missing_s = None, self._options.missing_s
        while True:
            try:
                release = self._release()
                if release is None:
                    return False
                self._own.reset_when_steady()
                self._refresh_metrics(self._cluster, release)
                if step(release):
                    return True
                refused_at = None
            except UnreachableError as error:
                refused_at = None
                self._wait(str(error), "retrying without limit")
            except (NotAllowedError, NotYetError) as error:
                refused_at = refused_at or time.monotonic()
                reason = f"{error}; {RESTORE}" if isinstance(error, NotAllowedError) else str(error)
                if time.monotonic() - refused_at > missing_s:
                    raise StageFailedError(reason) from None
                self._wait(reason, f"waiting up to {missing_s:.0f} s")
            except ClusterError as error:
                raise StageFailedError(str(error)) from None
            time.sleep(POLL_S)

    def leave_search(self, failure: str, release: Release) -> bool:
        """Resume a search that gave way; return whether nobody has to enforce the budget of one of earlier settings.

        Such a search continues after an upgrade was rejected, for which this controller gives the reason.
        """
        resume_search(self._cluster, release)
        if self._options.budget == Budget() or self._has_exhausted(release):
            return True
        jobs = [job for job in unfinished_searches(self._cluster, release) if not is_paused(job)]
        for job in jobs:
            self._wait(failure, f"until that is corrected, Job {job['metadata']['name']} continues within its budget")
        return not jobs

    def _has_exhausted(self, release: Release) -> bool:
        """Return whether the budget is exhausted; if so, a running search has been stopped."""
        exhausted = enforce(self._cluster, release, self._options.budget, self._watch.add_usage)
        if exhausted:
            self._warnings.log(f"{exhausted}; the search's pods hand over their trials")
        return bool(exhausted)

    def _wait(self, reason: str, how: str) -> None:
        """Say what this controller waits for, at most once a minute."""
        if self._warnings.log(f"{reason}; {how}"):
            self._record("Waiting", reason, is_warning=True)

    def _release(self) -> Release | None:
        """Return the release to run; None if another controller runs it, or it was uninstalled."""
        while True:
            found = read_release(self._cluster, self._options.stages)
            if found is None or found.digest == self._options.digest:
                self._last, self._replaced_since_s = found, None
                return found
            now_s = time.monotonic()
            self._replaced_since_s = self._replaced_since_s or now_s
            is_late = now_s - self._replaced_since_s > UPGRADE_S
            successor = self._cluster.get("Job", found.controller)
            if successor is None:
                if is_late:
                    stages = "the stages from before" if self._last else "the new stages"
                    self._warnings.log(f"helm upgrade failed halfway; continuing with {stages}; repeat it or roll back")
                return replace(self._last or found, done=found.done)
            with suppress(NotAllowedError):
                _adopt(self._cluster, found, successor)
            result = job_result(successor)
            if successor.get("status", {}).get("ready") or (result and not (result.failed and self._last)):
                return None
            if is_late:
                state = "has failed" if result else "does not run yet"
                why = _why_not_running(self._cluster, successor)
                how = "continuing with the stages from before" if self._last else "waiting for it"
                self._wait(f"the next controller, Job {found.controller}, {state}{why}", how)
            if self._last:
                return replace(self._last, done=found.done)
            self._has_exhausted(found)
            time.sleep(POLL_S)


def _why_not_running(cluster: Cluster, job: Object) -> str:
    """Return why a Job has no running pod, after a colon, empty if that is not known."""
    for pod in cluster.find("Pod", {JOB_NAME: job["metadata"]["name"]}):
        if problem := why_not_started(cluster, pod):
            return f": {problem}"
    refused = job_problem(cluster, job)
    return f": its pod can't be created: {with_remedy(CONTROLLER, refused.reason)}" if refused else ""


def _end_with_namespace(cluster: Cluster, options: ControllerOptions) -> None:
    """Delete the release's Jobs if the namespace is being deleted.

    It first waits for the pods, but an Indexed Job keeps a pod that has ended until it has created its replacement,
    which is forbidden there.
    """
    with suppress(ClusterError):
        release = read_release(cluster, options.stages)
        if release is None:
            return
        try:
            cluster.create(release.search.job(1, release.owner, {}), dry_run=True)
        except ClusterError as error:
            if BEING_DELETED in str(error):
                for job in cluster.find("Job", selector(release.name)):
                    cluster.delete("Job", job["metadata"]["name"])


def _stage_step(cluster: Cluster, options: ControllerOptions, watch: StudyWatch, name: str) -> Step:
    """Return the step that runs one stage to its end."""
    kind: Callable[..., StageRun] = StageRun
    if name != STAGES[-1]:
        run_of = CacheRun if name == "cache" else SearchRun
        kind = partial(run_of, watch=watch, budget=options.budget, max_rounds=options.max_rounds)
    run: StageRun | None = None

    def reconcile(release: Release) -> bool:
        nonlocal run
        if run is None:
            common = {"controller_digest": options.digest, "missing_s": options.missing_s}
            run = kind(cluster, release, release.stage(name), **common)
        run.release = release
        if run.reconcile():
            return True
        if name == STAGES[0] or watch.is_away:
            problem = database_problem(cluster, release)
            if problem and name == STAGES[0] and problem.is_missing:
                raise NotYetError(f"the database's {problem}")
            if problem:
                run.log_once(f"the database's {problem}", "DatabaseWaiting", is_warning=True)
        return False

    return reconcile


def write_termination_message(outcome: str, path: Path = TERMINATION_LOG) -> None:
    """Write the outcome where `kubectl describe` shows it, if this is a pod."""
    if exists(path):
        path.write_text(outcome, encoding="utf-8")
