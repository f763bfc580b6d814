"""The search stage: any number of pods on one study, which the controller alone ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from csi_job.cluster.api import Cluster
from csi_job.cluster.budget import ENDED, Budget, first_reading, is_due, reading, unmetered_use
from csi_job.cluster.gpus import GPU_RESOURCE
from csi_job.cluster.stage_run import HOPELESS, StageRun
from csi_job.cluster.stages import PARALLELISM, Ending, Release, Stage, annotation, is_paused, is_queued, sized
from csi_job.cluster.study_watch import StudyWatch, story_of
from csi_job.errors import StageFailedError
from csi_job.study.status import StudyStatus

DEADLINE: Final = "DeadlineExceeded"  # the Job's reason after `search.deadlineSeconds`
HINT: Final = "raise the budget, search.deadlineSeconds or job.study.num_trials, or lower job.study.max_epochs"


class SearchRun(StageRun):
    """Made anew while trials are left, resized when the values' parallelism changes, ended when the budget is spent."""

    def __init__(
        self,
        cluster: Cluster,
        release: Release,
        stage: Stage,
        *,
        me: str,
        missing_s: float,
        watch: StudyWatch,
        budget: Budget,
        max_rounds: int,
    ) -> None:
        """As `StageRun`, with the study, the budget, and how often the Job is made anew."""
        super().__init__(cluster, release, stage, me=me, missing_s=missing_s)
        self.watch, self.budget, self.max_rounds = watch, budget, max_rounds

    def follow(self, job: Mapping[str, Any]) -> bool:
        """Tell how far the study is; resize or end the Job where that is due."""
        self._meter(job)
        spent = self.budget.spent(job)
        if spent:
            return self._end(job, spent)
        if annotation(job, ENDED):
            self._undo_later()
            self._patch(job, int(job["spec"]["completions"]), {ENDED: ""})
            self.tell("search: goes on, the budget was raised")
        elif annotation(job, PARALLELISM) != str(self.stage.parallelism):
            self._patch(job, self.stage.parallelism, {PARALLELISM: str(self.stage.parallelism)})
            self.tell(f"search: {self.stage.parallelism} pods now, as the values say")
        status = self.watch.look()
        if status is not None:
            self.tell(f"search: {story_of(status)}")
        return super().follow(job)

    def judge(self, job: Mapping[str, Any], ending: Ending) -> bool:
        """End the search where the study is finished or the budget spent, else make the Job anew."""
        if ending.failed and ending.reason == HOPELESS:
            return super().judge(job, ending)
        self._meter(job)
        status = self.watch.look()
        if status is None:
            return False
        self.tell(f"search: {story_of(status)}")
        why = "the study is finished" if status.is_finished else self.budget.spent(job) or _deadline_of(job, ending)
        if why:
            _has_a_best_trial(status, why)
            self.tell(f"search: done, {why}")
            return True
        left = f"its pods are over and {status.target - status.num_finished} trials are left"
        self.again(job, f"{left} ({self.reason(job, ending)})" if ending.failed else left, self.max_rounds)
        return False

    def annotations(self) -> dict[str, str]:
        """Begin to meter what the Job uses."""
        return first_reading() | {GPU_RESOURCE: self.release.gpu_resource}

    def adjust(self, manifest: dict[str, Any], previous: Mapping[str, Any] | None) -> None:
        """Keep the number of pods that `csi-job cluster scale` chose, unless the values changed since."""
        if previous is None or annotation(previous, PARALLELISM) != str(self.stage.parallelism):
            return
        queued = is_queued(manifest)
        manifest["spec"] |= sized(int(previous["spec"]["completions"]), queued=queued)
        if is_paused(previous) and not annotation(previous, ENDED):
            manifest["spec"] |= sized(0, queued=queued)

    def _meter(self, job: Mapping[str, Any]) -> None:
        """Add what was used since the last reading to the study, which outlives every Job; later where it is away."""
        total = self.watch.spend(unmetered_use(job)) if is_due(job) else None
        if total is not None:
            read = reading(job, total)
            job["metadata"]["annotations"].update(read)
            self.cluster.patch_job(job["metadata"]["name"], {"metadata": {"annotations": read}})

    def _end(self, job: Mapping[str, Any], spent: str) -> bool:
        """Hold the pods back, for the budget is spent; return whether they are gone."""
        self.tell(f"search: {spent}; the pods hand their trials over, then the final model is trained")
        if not is_paused(job):
            self._patch(job, 0, {ENDED: "budget"})
            return False
        status = None if (job.get("status") or {}).get("active") else self.watch.look()
        if status is None:
            return False
        _has_a_best_trial(status, spent)
        return True

    def _make(self, previous: Mapping[str, Any] | None, number: int, tries: int = 1) -> None:
        self._undo_later()
        super()._make(previous, number, tries)

    def _undo_later(self) -> None:
        """Delete the Jobs that build on this search, before it goes on: they knew fewer trials."""
        jobs = [job for stage in self.release.after(self.stage) for job in self.cluster.jobs(stage.labels)]
        status = self.watch.look() if jobs else None
        if status is None or not status.is_finished:  # a study without trials left has none to add
            self._remove(jobs)

    def _patch(self, job: Mapping[str, Any], num_pods: int, annotations: Mapping[str, str]) -> None:
        spec = sized(num_pods, queued=is_queued(job))
        self.cluster.patch_job(job["metadata"]["name"], {"metadata": {"annotations": dict(annotations)}, "spec": spec})


def _deadline_of(job: Mapping[str, Any], ending: Ending) -> str:
    """Return that the Job ended by its deadline, in words; `` where it did not."""
    seconds = job["spec"].get("activeDeadlineSeconds", "?")
    return f"the deadline of {seconds} s is over" if ending.reason == DEADLINE else ""


def _has_a_best_trial(status: StudyStatus, why: str) -> None:
    """Refuse to go on to a final model of nothing."""
    if not status.num_complete:
        message = f"{why}, and no trial is complete, so there is no model to train ({story_of(status)})"
        raise StageFailedError(message, hint=HINT)
