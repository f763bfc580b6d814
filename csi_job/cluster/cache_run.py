"""The cache stage: it creates the study, and may have to run while a search still holds the quota."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from csi_job.cluster.refusals import EXCEEDED_QUOTA, job_problem
from csi_job.cluster.stage_run import StageRun
from csi_job.cluster.stages import HELD, JobResult, age_s, is_paused, is_waiting, resize
from csi_job.cluster.study_watch import StudyWatch

MAKE_ROOM_AFTER_S: Final = 30.0  # by when Kueue has admitted what fits


class CacheRun(StageRun):
    """Run again for a study that no longer exists; while it lacks quota, the search of the release gives way."""

    def __init__(self, *stage: Any, watch: StudyWatch, max_rounds: int, **options: Any) -> None:
        """Like `StageRun`, with the study, and how often the Job may be recreated for it."""
        super().__init__(*stage, **options)
        self.watch, self.max_rounds = watch, max_rounds

    def on_active(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> bool:
        """Make room for the Job if it has waited for quota."""
        if not pods and age_s(job) > MAKE_ROOM_AFTER_S:
            problem = job_problem(self.cluster, job)
            if is_waiting(job) or (problem and EXCEEDED_QUOTA in problem.reason):
                self._hold_search()
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

    def _is_study_missing(self) -> bool:
        return self.watch.status() is None and self.watch.is_missing

    def _hold_search(self) -> None:
        """Let the pods of a search of earlier settings hand over their trials; it starts again after this stage."""
        for job in self.cluster.jobs(self.release.search.labels):
            if not (is_paused(job) or is_waiting(job)) and (job.get("status") or {}).get("active"):
                resize(self.cluster, job, 0, {HELD: "true"})
                name = job["metadata"]["name"]
                self.log_once(
                    f"cache: waits for quota; Job {name} hands over its trials until the cache is done", "Waiting"
                )
