"""One stage brought to its end, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from csi_job.cluster.api import Cluster
from csi_job.cluster.pods import Trouble, failure_of, is_running, trouble_of
from csi_job.cluster.stages import (
    DIGEST,
    MADE_BY,
    ROUND,
    TRIES,
    Ending,
    Release,
    Stage,
    annotation,
    ending_of,
    is_paused,
)
from csi_job.errors import StageFailedError
from csi_job.logs import get_logger

logger = get_logger(__name__)
HOPELESS: Final = "PodFailurePolicy"  # the Job's reason after an exit code that no new try can mend
HOPELESS_CODES: Final = (2, 3)  # as the chart has them: a mistake in what was given, a study that failed
SENT_AWAY: Final = 143  # the exit code after SIGTERM
JOB_NAME: Final = "batch.kubernetes.io/job-name"


class StageRun:
    """A stage: its Job is made where it is missing, replaced where the chart changed, told of, and judged."""

    def __init__(self, cluster: Cluster, release: Release, stage: Stage, *, me: str, missing_s: float) -> None:
        """Remember the stage.

        Args:
            cluster: the namespace.
            release: the release the stage belongs to.
            stage: the stage.
            me: digest of this controller; a Job that failed under another one is tried again.
            missing_s: seconds that a pod may wait for what is not there.

        """
        self.cluster, self.release, self.stage = cluster, release, stage
        self.me, self.missing_s = me, missing_s
        self._told: set[str] = set()

    def step(self) -> bool:
        """Look once and do what is due; return whether the stage has ended well.

        Raises:
            StageFailedError: it has failed for good.

        """
        jobs = self.cluster.jobs(self.stage.labels)
        own = [job for job in jobs if annotation(job, DIGEST) == self.stage.digest]
        if not own:
            self._make(jobs[-1] if jobs else None, 1)
        else:
            job = max(own, key=lambda job: int(annotation(job, ROUND, "1")))
            self._remove(other for other in jobs if other is not job)
            ending = ending_of(job)
            if ending is not None:
                return self.judge(job, ending)
            self._tell_pods(job)
            return self.follow(job)
        return False

    def follow(self, job: Mapping[str, Any]) -> bool:
        """Look after a Job that goes on; return whether the stage is over all the same."""
        paused, waits = f"{self.stage.name}: is suspended", f"{self.stage.name}: waits for its quota"
        now = paused if is_paused(job) else waits if job["spec"].get("suspend") else ""
        self._told -= {paused, waits} - {now}  # what comes again is told again
        if now:
            self.tell(now)
        return False

    def judge(self, job: Mapping[str, Any], ending: Ending) -> bool:
        """Return whether an ended Job means that the stage is over, or make it anew."""
        if not ending.failed:
            self.tell(f"{self.stage.name}: done")
            return True
        if annotation(job, MADE_BY) != self.me:
            self.tell(f"{self.stage.name}: failed before, is tried again")
            self._make(job, int(annotation(job, ROUND, "1")) + 1)
            return False
        raise StageFailedError(f"{self.stage.name} failed: {self.reason(job, ending)}")

    def again(self, job: Mapping[str, Any], why: str, most: int) -> None:
        """Make a stage's Job anew, a bounded number of times."""
        tries = int(annotation(job, TRIES, "1")) if annotation(job, MADE_BY) == self.me else 0
        if tries >= most:
            raise StageFailedError(f"{self.stage.name} was made {tries} times and is not finished: {why}")
        self.tell(f"{self.stage.name}: {why}; it is made anew ({tries + 1} of {most})")
        self._make(job, int(annotation(job, ROUND, "1")) + 1, tries=tries + 1)

    def annotations(self) -> dict[str, str]:
        """Return what else the Job that is made is to remember."""
        return {}

    def adjust(self, manifest: dict[str, Any], previous: Mapping[str, Any] | None) -> None:
        """Change the manifest of the Job that is made by the one before."""

    def tell(self, line: str) -> None:
        """Log a line of the story, once."""
        if line not in self._told:
            self._told.add(line)
            logger.info("%s", line)

    def reason(self, job: Mapping[str, Any], ending: Ending) -> str:
        """Return why a Job failed: the line of the pod that failed, else what the Job itself says."""
        failures = [failure for pod in self._pods(job) if (failure := failure_of(pod))]
        if ending.reason == HOPELESS:
            failures = [failure for failure in failures if failure.exit_code in HOPELESS_CODES] or failures
        return str(failures[-1]) if failures else ending.message or ending.reason

    def _make(self, previous: Mapping[str, Any] | None, number: int, tries: int = 1) -> None:
        known = {MADE_BY: self.me, TRIES: str(tries), **self.annotations()}
        manifest = self.stage.job(number, self.release.owner, known)
        self.adjust(manifest, previous)
        self.cluster.apply_job(manifest)
        self.tell(f"{self.stage.name}: starts as Job {manifest['metadata']['name']}")

    def _remove(self, jobs: Any) -> None:
        for job in jobs:
            self.cluster.delete_job(job["metadata"]["name"])
            logger.info("%s: Job %s is replaced", self.stage.name, job["metadata"]["name"])

    def _pods(self, job: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.cluster.pods({JOB_NAME: job["metadata"]["name"]})

    def _tell_pods(self, job: Mapping[str, Any]) -> None:
        """Tell of pods that failed or do not start; give up where what they need is not there and none runs."""
        pods = self._pods(job)
        runs = any(map(is_running, pods))
        for pod in pods:
            failure, trouble = failure_of(pod), trouble_of(pod)
            if failure and failure.exit_code == SENT_AWAY:
                self.tell(f"{self.stage.name}: pod {failure.pod} was sent away and hands its work over")
            elif failure:
                self.tell(f"{self.stage.name}: {failure}")
            elif trouble:
                self.tell(f"{self.stage.name}: pod {trouble.pod} does not start: {trouble.why}")
                if not runs:
                    self._give_up(job, trouble)

    def _give_up(self, job: Mapping[str, Any], trouble: Trouble) -> None:
        """Fail the stage where a pod has waited long enough for what is not there."""
        if trouble.is_missing and trouble.age_s > self.missing_s:
            self.cluster.delete_job(job["metadata"]["name"])
            raise StageFailedError(f"{self.stage.name} can't start: {trouble.why}")
