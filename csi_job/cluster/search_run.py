"""The search stage: any number of pods on one study; it ends when they find nothing left, or by the budget."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from csi_job.cluster.api import Cluster
from csi_job.cluster.back_off import SearchBackOff
from csi_job.cluster.budget import ENDED_BY, Budget, add_usage, initial_annotations, meter
from csi_job.cluster.stage_run import POD_FAILURE_POLICY, StageRun
from csi_job.cluster.stages import (
    GPU_RESOURCE,
    HELD,
    PARALLELISM,
    TRIES,
    JobResult,
    Release,
    Stage,
    age_s,
    get_annotation,
    is_paused,
    is_queued,
    resize,
    scale_patch,
)
from csi_job.cluster.study_watch import StudyWatch, numbers_of, summarize
from csi_job.errors import StageFailedError
from csi_job.html.format import plural
from csi_job.study.status import StudyStatus

RESTORE_AFTER_S: Final = 60.0  # doubled with each round
NUM_FINISHED: Final = "csi-job/num-finished"  # annotation of the Job: its study's `_progress` when it was created
DEADLINE: Final = "DeadlineExceeded"  # the Job's reason after `search.deadlineSeconds`
CONFIRMING: Final = "budget, confirming"  # value of `ENDED_BY` once the Job was resumed for the confirmation
HINT: Final = "raise the budget, search.deadlineSeconds or job.study.num_trials, or lower job.study.max_epochs"


class SearchRun(StageRun):
    """Recreated while trials are left, resized with the values' parallelism, ended when the budget is exhausted."""

    def __init__(
        self,
        cluster: Cluster,
        release: Release,
        stage: Stage,
        *,
        watch: StudyWatch,
        budget: Budget,
        max_rounds: int,
        **options: Any,
    ) -> None:
        """Like `StageRun`, with the study, its budget, and how often the Job may be recreated."""
        super().__init__(cluster, release, stage, **options)
        self.watch, self.budget, self.max_rounds = watch, budget, max_rounds
        self.back_off = SearchBackOff(cluster)

    def on_active(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> bool:
        """Log the study's progress; resize or end the Job if that is due."""
        meter(self.cluster, job, self.watch.add_usage)
        reason = self.budget.exhausted_reason(job)
        if reason:
            return self._end(job, pods, reason)
        if get_annotation(job, ENDED_BY):
            if not self.watch.end_search(ended=False):
                return False
            self._delete_later_stages()
            resize(self.cluster, job, int(job["spec"]["completions"]), {ENDED_BY: ""})
            self.log_once("search: resumed, the budget was raised", "Resumed")
        elif get_annotation(job, PARALLELISM) != str(self.stage.parallelism):
            number = self.stage.parallelism
            resize(self.cluster, job, number, {PARALLELISM: str(number)})
            self.log_once(f"search: scaled to {plural(number, 'pod')}, as in the values", "Scaled", pods=number)
        status = self.watch.status()
        if status is not None:
            self.log_once(f"search: {summarize(status)}", **numbers_of(status))
            self.back_off.reset_after_progress(pods, status.claimed)
            if not (status.is_finished and status.is_confirmed):
                self._restore_failed_index(job)
        return super().on_active(job, pods)

    def on_finished(self, job: Mapping[str, Any], result: JobResult) -> bool:
        """End the search if the study is finished or the budget exhausted, else recreate the Job."""
        if result.failed and result.reason == POD_FAILURE_POLICY:
            return super().on_finished(job, result)
        meter(self.cluster, job, self.watch.add_usage)
        status = self.watch.status()
        if status is None:
            return False
        self.log_once(f"search: {summarize(status)}", **numbers_of(status))
        deadline = f"the deadline of {job['spec'].get('activeDeadlineSeconds', '?')} s has passed"
        over = ("the study is finished" if status.is_finished else "") or self.budget.exhausted_reason(job)
        reason = (over if status.is_confirmed else "") or (deadline if result.reason == DEADLINE else "")
        if over or reason:
            _require_complete_trial(status, over or reason)
        if reason:
            self.log_once(f"search: done, {reason}", "Done")
            return True
        if _progress(status) > int(get_annotation(job, NUM_FINISHED, str(_progress(status)))):
            job["metadata"]["annotations"][TRIES] = "0"  # a search that makes progress may be recreated forever
        num_left = status.target - status.num_finished
        what = "its confirmation is" if over else f"{plural(num_left, 'trial')} {'is' if num_left == 1 else 'are'}"
        left = f"its pods have ended and {what} left"
        self.recreate(job, f"{left} ({self.failure_reason(job, result)})" if result.failed else left, self.max_rounds)
        return False

    def _restore_failed_index(self, job: Mapping[str, Any]) -> None:
        """Recreate a Job that has given up an index, after a wait that grows with each round without progress."""
        failed, tries = (job.get("status") or {}).get("failedIndexes"), int(get_annotation(job, TRIES, "1"))
        if failed and tries < self.max_rounds and age_s(job) > RESTORE_AFTER_S * 2**tries:
            self.recreate(job, f"pod {failed} failed too often without finishing an epoch", self.max_rounds)

    def stays_done(self) -> bool | None:
        """Return whether the study is still finished, or was ended by its deadline or its budget."""
        status = self.watch.status()
        if status is None:
            return None
        now = self.stage.job(1, self.release.owner, self.annotations())  # as a new one would begin
        add_usage(now, self.watch.add_usage)
        has_deadline = "activeDeadlineSeconds" in self.stage.manifest["spec"]
        return status.is_finished or has_deadline or (status.is_confirmed and bool(self.budget.exhausted_reason(now)))

    def annotations(self) -> dict[str, str]:
        """Return what metering needs to start, and from where the search starts."""
        status = self.watch.status()
        finished = {} if status is None else {NUM_FINISHED: str(_progress(status))}
        return initial_annotations() | {GPU_RESOURCE: self.release.gpu_resource} | finished

    def carry_over_scale(self, manifest: dict[str, Any], previous: Mapping[str, Any] | None) -> None:
        """Keep the number of pods set by `csi-job cluster scale`, unless the values have changed since.

        Without budget, e.g. after a reinstall, the Job is suspended, so that no pod starts only to be stopped.
        """
        queued = is_queued(manifest)
        if previous is not None and get_annotation(previous, PARALLELISM) == str(self.stage.parallelism):
            manifest["spec"] |= scale_patch(int(previous["spec"]["completions"]), queued=queued)
            if is_paused(previous) and not (get_annotation(previous, ENDED_BY) or get_annotation(previous, HELD)):
                manifest["spec"] |= scale_patch(0, queued=queued)
        add_usage(manifest, self.watch.add_usage)
        if self.budget.exhausted_reason(manifest):
            manifest["metadata"]["annotations"][ENDED_BY] = "budget"
            manifest["spec"] |= scale_patch(0, queued=queued)

    def _end(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], reason: str) -> bool:
        """Restrict the pods to the confirmation, since the budget is exhausted; return whether that is done.

        They are stopped first, so that they hand over their trials.
        """
        line = f"search: {reason}; its pods hand over their trials, then its winner is confirmed"
        self.log_once(line, "BudgetExhausted")
        if get_annotation(job, ENDED_BY) == CONFIRMING:
            return super().on_active(job, pods)
        if not is_paused(job):
            resize(self.cluster, job, 0, {ENDED_BY: "budget"})
            return False
        status = None if (job.get("status") or {}).get("active") else self.watch.status()
        if status is None:
            return False
        _require_complete_trial(status, reason)
        if not status.is_confirmed and self.watch.end_search(ended=True):
            resize(self.cluster, job, int(job["spec"]["completions"]), {ENDED_BY: CONFIRMING})
        return status.is_confirmed

    def _create(self, previous: Mapping[str, Any] | None, number: int, tries: int = 1) -> None:
        # Ended by the budget of an earlier Job; if it is exhausted, `_end` follows.
        if not self.watch.end_search(ended=False):
            return  # its pods would hold GPUs and wait for the database
        self._delete_later_stages()
        super()._create(previous, number, tries)

    def _delete_later_stages(self) -> None:
        """Delete the Jobs that build on this search before it continues: they are based on fewer trials."""
        later = self.release.after(self.stage)
        jobs = [job for stage in later for job in self.cluster.jobs(stage.labels)]
        done = [stage for stage in later if self.release.done.get(stage.name)]
        status = self.watch.status() if jobs or done else None
        if status is None or not status.is_finished:  # a finished study has no trial to add
            self._delete(jobs)
            if done:
                self._note_done(done, None)


def _progress(status: StudyStatus) -> int:
    """Return a number that grows whenever a trial is paused or finished."""
    return 2 * status.num_finished + status.num_paused


def _require_complete_trial(status: StudyStatus, reason: str) -> None:
    if status.best is None:
        which = "no complete trial is inside the study's space" if status.num_complete else "no trial is complete"
        message = f"{reason}, but {which}, so there is no model to train ({summarize(status)})"
        raise StageFailedError(message, hint=HINT)
