"""One stage of a release, reconciled until it ends; and what is particular to the cache stage."""

import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from csi_job.cluster.api import Cluster, NotAllowedError, ServerClock
from csi_job.cluster.budget import Budget, enforce, initial_annotations
from csi_job.cluster.pods import failure_of, is_active, is_evicted, is_lost, is_running, starting_s
from csi_job.cluster.refusals import EXCEEDED_QUOTA, apply_job, is_lasting, job_problem, why_not_started, with_remedy
from csi_job.cluster.stages import (
    DIGEST,
    DONE,
    EXPIRY,
    GIVES_WAY,
    HELD,
    MADE_BY,
    MIN_PODS,
    NO_STUDY,
    QUEUE,
    ROUND,
    SECRETS,
    START_OVER,
    TRIES,
    JobResult,
    Release,
    Stage,
    age_s,
    get_annotation,
    is_paused,
    is_queued,
    is_waiting,
    job_result,
    partial_admission,
    quota_wait,
    resize,
    scale_patch,
    suspension,
)
from csi_job.cluster.study_watch import StudyWatch
from csi_job.errors import ConfigurationError, StageFailedError, StudyFailedError
from csi_job.logs import log_line

logger = logging.getLogger(__name__)
POD_FAILURE_POLICY: Final = "PodFailurePolicy"  # reason of a Job that failed by an exit code no retry can fix
# The podFailurePolicy of each stage has the same codes; tests/chart/test_contract.py compares them.
NON_RETRIABLE_EXIT_CODES: Final = (ConfigurationError.exit_code, StudyFailedError.exit_code)
EXIT_SIGTERM: Final = 128 + signal.SIGTERM
JOB_NAME: Final = "batch.kubernetes.io/job-name"
JOB_UID: Final = "batch.kubernetes.io/controller-uid"
RETRIED: Final = "csi-job/retried"  # annotation of a Job; whenever it changes, Kubernetes tries to create missing pods
FORGET_AFTER_S: Final = 60.0  # what has not been missing for so long was there
RETRY_AFTER_S: Final = 5.0  # between two such changes
MAKE_ROOM_AFTER_S: Final = 30.0  # by when Kueue admits what fits, and pods that were ending have left a quota


class StageRun:
    """Creates a stage's Job, replaces it when the chart has changed, logs its progress and evaluates its result."""

    def __init__(
        self, cluster: Cluster, release: Release, stage: Stage, *, controller_digest: str, missing_s: float
    ) -> None:
        """Do nothing yet.

        A Job that failed under a controller with another `controller_digest` is retried. A pod may wait `missing_s` for
        something that does not exist.
        """
        self.cluster, self.release, self.stage = cluster, release, stage
        self.controller_digest, self.missing_s = controller_digest, missing_s
        self._logged: set[str] = set()
        self._last = ""  # name of the Job last seen
        self._missing_since_s = self._missing_seen_s = -math.inf

    def reconcile(self) -> bool:
        """Compare the cluster with what should be, and take the next step; return whether the stage succeeded.

        Raises:
            StageFailedError: it failed permanently.
        """
        jobs = self.cluster.jobs(self.stage.labels)
        own = [job for job in jobs if get_annotation(job, DIGEST) == self.stage.digest]
        if not own and self.release.done.get(self.stage.name) == self.stage.digest:
            stays_done = self.stays_done()
            if stays_done is None:
                return False
            if stays_done:
                return True
        if not own:
            if self._last:  # everything is logged again, but only once while it is being deleted
                self._logged.clear()
                self.log_once(f"{self.stage.name}: Job {self._last} was deleted", "Deleted", is_warning=True)
                self._last = ""
            self._create(jobs[-1] if jobs else None, 1)
            return False
        job = max(own, key=_round)
        self._last = job["metadata"]["name"]
        self._delete(other for other in jobs if other is not job)
        if get_annotation(job, HELD):
            self._start_when_alone(job)
            return False
        result = job_result(job)
        if result is not None:
            is_done = self.on_finished(job, result)
            if is_done:
                self._let_expire(job)
            return is_done
        pods = self._pods(job)
        self._check_pods(job, pods)
        return self.on_active(job, pods)

    def on_active(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> bool:  # noqa: ARG002 - the search's
        """Handle a Job that has not finished, with its pods; return whether the stage is done anyway."""
        paused, waiting = f"{self.stage.name}: {suspension(job)}", f"{self.stage.name}: {quota_wait(job)}"
        now = paused if is_paused(job) else waiting if is_waiting(job) else ""
        self._logged -= {paused, waiting} - {now}  # logged again when it happens again
        if now:
            self.log_once(now, "Waiting")
        again = partial_admission(self.stage, job["spec"].get("parallelism", 1))
        if now == waiting and again and not get_annotation(job, MIN_PODS):
            self.cluster.patch("Job", job["metadata"]["name"], {"metadata": {"annotations": again}})
        return False

    def on_finished(self, job: Mapping[str, Any], result: JobResult) -> bool:
        """Return whether a finished Job completes the stage; if not, recreate it."""
        if not result.failed:
            self.log_once(f"{self.stage.name}: done", "Done")
            return True
        if get_annotation(job, MADE_BY) != self.controller_digest:
            self.log_once(f"{self.stage.name}: failed before, retrying", "Retrying")
            self._create(job, _round(job) + 1)
            return False
        raise StageFailedError(f"{self.stage.name} failed: {self.failure_reason(job, result)}")

    def stays_done(self) -> bool | None:
        """Return whether a stage that has succeeded, and whose Job has expired, need not run again; None: not known."""
        return True

    def recreate(self, job: Mapping[str, Any], reason: str, max_tries: int) -> None:
        """Create the stage's Job again, at most this often."""
        tries = int(get_annotation(job, TRIES, "1")) if get_annotation(job, MADE_BY) == self.controller_digest else 0
        if tries >= max_tries:
            raise StageFailedError(f"{self.stage.name} was created {tries} times and has not finished: {reason}")
        line = f"{self.stage.name}: {reason}; recreating it ({tries + 1} of {max_tries})"
        self.log_once(line, "Recreating", is_warning=True, tries=tries + 1, max_tries=max_tries)
        self._create(job, _round(job) + 1, tries=tries + 1)

    def annotations(self) -> dict[str, str]:
        """Return further annotations for a new Job."""
        return {}

    def carry_over_scale(self, manifest: dict[str, Any], previous: Mapping[str, Any] | None) -> None:
        """Copy to a new Job's manifest what was scaled on the previous Job; only a search can be."""

    def log_once(self, line: str, event: str = "", *, is_warning: bool = False, **values: object) -> None:
        """Log a line with the values in it unless it was logged before; also record an `event`, given its reason."""
        if line not in self._logged:
            self._logged.add(line)
            log_line(logger, logging.INFO, line, {"stage": self.stage.name, **values})
            if event:
                self.release.record(self.cluster, event, line, is_warning=is_warning)

    def failure_reason(self, job: Mapping[str, Any], result: JobResult) -> str:
        """Return why a Job failed: the error of its pod if there is one, else what the Job itself says."""
        failures = [failure for pod in self._pods(job) if (failure := failure_of(pod))]
        if result.reason == POD_FAILURE_POLICY:
            failures = [failure for failure in failures if failure.exit_code in NON_RETRIABLE_EXIT_CODES] or failures
        reason = str(failures[-1]) if failures else result.message or result.reason
        if NO_STUDY in reason:
            return f"{reason.partition('; ')[0]}; {START_OVER}"
        return f"{reason}; restore the Secret, then helm upgrade" if f"{SECRETS}/" in reason else reason

    def _create(self, previous: Mapping[str, Any] | None, number: int, tries: int = 1) -> None:
        annotations = {MADE_BY: self.controller_digest, TRIES: str(tries), **self.annotations()}
        manifest = self.stage.job(number, self.release.owner, annotations)
        self.carry_over_scale(manifest, previous)
        is_replacing = previous is not None and job_result(previous) is None
        if (is_replacing or any(self._pods_of_others(manifest))) and not is_paused(manifest):
            manifest["metadata"]["annotations"][HELD] = "true"
            manifest["spec"] |= scale_patch(0, queued=is_queued(manifest))
        if not partial_admission(self.stage, manifest["spec"].get("parallelism", 1)):
            manifest["metadata"]["annotations"].pop(MIN_PODS, None)
        apply_job(self.cluster, self.stage, manifest)
        is_waiting = HELD in manifest["metadata"]["annotations"] or is_paused(manifest)
        verb = "created" if is_waiting else "started"
        self.log_once(f"{self.stage.name}: {verb} as Job {manifest['metadata']['name']}", verb.capitalize())

    def _let_expire(self, job: Mapping[str, Any]) -> None:
        """Note that the stage has succeeded, then let its Job be deleted after the time in the values."""
        after_s = self.stage.manifest["spec"].get(EXPIRY)
        if after_s is not None and job["spec"].get(EXPIRY) != after_s:
            with suppress(NotAllowedError):  # with a Role made for an earlier version, the Job stays
                self._note_done([self.stage], self.stage.digest)
                self.cluster.patch("Job", job["metadata"]["name"], {"spec": {EXPIRY: after_s}})

    def _note_done(self, stages: Iterable[Stage], digest: str | None) -> None:
        """Note on the release's ConfigMap with which digest stages have succeeded, None for not."""
        annotations = {DONE + stage.name: digest for stage in stages}
        self.cluster.patch("ConfigMap", self.release.owner["name"], {"metadata": {"annotations": annotations}})

    def _start_when_alone(self, job: Mapping[str, Any]) -> None:
        """Start a Job that was created on hold, so that at no time two Jobs of a stage have pods."""
        name = job["metadata"]["name"]
        if left := [pod["metadata"]["name"] for pod in self._pods_of_others(job)]:
            self.log_once(f"{self.stage.name}: Job {name} starts when these pods have ended: {', '.join(left)}")
            return
        _end_hold(self.cluster, job)
        self.log_once(f"{self.stage.name}: started as Job {name}", "Started")

    def _pods_of_others(self, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the stage's pods of other Jobs, also of a deleted one with the same name, that have not ended.

        Those on a lost node are left out.
        """
        for pod in self.cluster.find("Pod", self.stage.labels):
            is_own = pod["metadata"]["labels"].get(JOB_UID) == job["metadata"].get("uid")
            if not is_own and is_active(pod) and not is_lost(pod):
                yield pod

    def _delete(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        for job in jobs:
            self.cluster.delete("Job", job["metadata"]["name"])
            logger.info("%s: replacing Job %s", self.stage.name, job["metadata"]["name"])

    def _pods(self, job: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.cluster.find("Pod", {JOB_NAME: job["metadata"]["name"]})

    def _check_pods(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> None:
        """Log which pods failed, do not start or can't be created; fail the stage if that lasts and none is left."""
        starting = [pod for pod in pods if pod["status"].get("phase") == "Pending"]
        slowest = max(starting, key=starting_s, default=None)  # whose events say what all of them wait for
        for pod in pods:
            failure, problem = failure_of(pod), why_not_started(self.cluster, pod, ask=pod is slowest)
            if failure and failure.exit_code == EXIT_SIGTERM and not is_evicted(pod):
                self.log_once(f"{self.stage.name}: pod {failure.pod} was terminated and handed over its work")
            elif failure:
                values = {"pod": failure.pod, "exit_code": failure.exit_code}
                self.log_once(f"{self.stage.name}: {failure}", "PodFailed", is_warning=True, **values)
            elif problem:
                self.log_once(f"{self.stage.name}: {problem}", "PodWaiting", is_warning=True)
                if problem.is_missing and not any(map(is_running, pods)):
                    self._fail_if_stuck(job, problem.reason, self._missing_for_s())
        self._check_creation(job, has_pods=any(map(is_active, pods)))

    def _missing_for_s(self) -> float:
        """Return for how long what pods need has been seen to be missing, until now.

        A pod does not say since when: it may have pulled its image for minutes before the first error.
        """
        now_s = time.monotonic()
        if now_s - self._missing_seen_s > FORGET_AFTER_S:
            self._missing_since_s = now_s
        self._missing_seen_s = now_s
        return now_s - self._missing_since_s

    def _check_creation(self, job: Mapping[str, Any], *, has_pods: bool) -> None:
        """Log why pods are missing; fail the stage if it has none."""
        if problem := job_problem(self.cluster, job):
            reason = with_remedy(self.stage.name, problem.reason)
            self.log_once(f"{self.stage.name}: its pods can't be created: {reason}", "PodsRefused", is_warning=True)
            if not (has_pods or problem.is_outage):
                self._fail_if_stuck(job, reason, problem.age_s)

    def _fail_if_stuck(self, job: Mapping[str, Any], reason: str, missing_s: float) -> None:
        """Fail the stage if what its pods need has been missing for too long."""
        if missing_s > self.missing_s:
            self.cluster.delete("Job", job["metadata"]["name"])
            raise StageFailedError(f"{self.stage.name} can't start: {reason}")


class CacheRun(StageRun):
    """Run again for a study that no longer exists; while it lacks quota, the search of the release gives way."""

    def __init__(self, *stage: Any, watch: StudyWatch, budget: Budget, max_rounds: int, **options: Any) -> None:
        """Like `StageRun`, with the study, its budget, and how often the Job may be recreated for it."""
        super().__init__(*stage, **options)
        self.watch, self.budget, self.max_rounds = watch, budget, max_rounds
        self._crowded_at_s: float | None = None  # when pods of the search were last seen
        self._retried_at_s = -math.inf
        self._is_in_vain = False  # the search gave way, and a queue admitted the stage no sooner

    def on_active(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> bool:
        """Make room for the Job if it has waited for a queue's quota, unless that was in vain."""
        if exhausted := enforce(self.cluster, self.release, self.budget, self.watch.add_usage):
            self.log_once(f"cache: meanwhile, {exhausted}; the search's pods hand over their trials", "BudgetExhausted")
        if is_waiting(job) and age_s(job) > MAKE_ROOM_AFTER_S and not self._is_in_vain:
            if self._has_search_pods():
                self._hold_search(job["metadata"]["labels"][QUEUE])
            elif self._without_search_s() > MAKE_ROOM_AFTER_S:
                for name in resume_search(self.cluster, self.release):
                    self._is_in_vain = True
                    self.log_once(f"cache: still waits for quota; Job {name} continues", "Waiting")
        return super().on_active(job, pods)

    def on_finished(self, job: Mapping[str, Any], result: JobResult) -> bool:
        """Run the stage again if its study is gone, e.g. with the volume of its database."""
        if not result.failed and self._is_study_missing():
            self.recreate(job, "its study no longer exists", self.max_rounds)
            return False
        return super().on_finished(job, result)

    def stays_done(self) -> bool:
        """Return whether the study that the stage created is still there, as far as is known."""
        return not self._is_study_missing()

    def _fail_if_stuck(self, job: Mapping[str, Any], reason: str, missing_s: float) -> None:
        """Make room for a pod that the namespace's quota refuses; it may fail once the search's pods have left it."""
        if EXCEEDED_QUOTA in reason and not is_lasting(reason):
            if self._has_search_pods():
                if missing_s > MAKE_ROOM_AFTER_S:
                    self._hold_search()
                return
            if _held_searches(self.cluster, self.release):
                self._retry(job)
        super()._fail_if_stuck(job, reason, min(missing_s, self._without_search_s()))

    def _retry(self, job: Mapping[str, Any]) -> None:
        """Let Kubernetes try again to create the Job's pods, which it would do only within a minute."""
        if time.monotonic() - self._retried_at_s > RETRY_AFTER_S:
            self._retried_at_s = time.monotonic()
            retried = {RETRIED: ServerClock.now().isoformat(timespec="seconds")}
            self.cluster.patch("Job", job["metadata"]["name"], {"metadata": {"annotations": retried}})

    def _is_study_missing(self) -> bool:
        return self.watch.status() is None and self.watch.is_missing

    def _has_search_pods(self) -> bool:
        if found := any(map(is_active, self.cluster.find("Pod", self.release.search.labels))):
            self._crowded_at_s = time.monotonic()
        return found

    def _without_search_s(self) -> float:
        """Return for how long the search has had no pods; an earlier controller may have seen those of one on hold."""
        now_s = time.monotonic()
        if self._crowded_at_s is None:
            self._crowded_at_s = now_s if _held_searches(self.cluster, self.release) else -math.inf
        return now_s - self._crowded_at_s

    def _hold_search(self, queue: str = "") -> None:
        """Let the pods of a search of earlier settings, in this queue if any, hand over until the stage is done.

        One in another queue continues, even where both draw on the same ClusterQueue: its quota can't be read here.
        """
        for job in self.cluster.jobs(self.release.search.labels):
            is_in_the_way = not queue or job["metadata"]["labels"].get(QUEUE) == queue
            has_pods = not (is_paused(job) or is_waiting(job)) and (job.get("status") or {}).get("active")
            if is_in_the_way and has_pods:
                resize(self.cluster, job, 0, {HELD: GIVES_WAY})
                name = job["metadata"]["name"]
                self.log_once(
                    f"cache: waits for quota; Job {name} hands over its trials until the cache is done", "Waiting"
                )


def resume_search(cluster: Cluster, release: Release) -> list[str]:
    """Resume a search that has given way to the cache stage; return the names of its Jobs."""
    held = _held_searches(cluster, release)
    for job in held:
        _end_hold(cluster, job)
    return [job["metadata"]["name"] for job in held]


def _held_searches(cluster: Cluster, release: Release) -> list[dict[str, Any]]:
    """Return the Jobs of a search that has given way to the cache stage."""
    return [job for job in cluster.jobs(release.search.labels) if get_annotation(job, HELD) == GIVES_WAY]


def _end_hold(cluster: Cluster, job: Mapping[str, Any]) -> None:
    """Start a Job on hold; of a search that gave way, no pod was running, even if nobody has metered their end."""
    metering = initial_annotations() if get_annotation(job, HELD) == GIVES_WAY else {}
    resize(cluster, job, int(job["spec"].get("completions", 1)), {HELD: None, **metering})


def _round(job: Mapping[str, Any]) -> int:
    return int(get_annotation(job, ROUND, "1"))
