"""The cache stage: it creates the study, and may have to run while a search still holds the quota."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from csi_job.cluster.pods import is_active
from csi_job.cluster.refusals import EXCEEDED_QUOTA
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
        self._crowded_at_s = -math.inf  # when pods of the search last held quota that the stage lacked

    def on_active(self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> bool:
        """Make room for the Job if it has waited for a queue's quota."""
        if is_waiting(job) and age_s(job) > MAKE_ROOM_AFTER_S:
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

    def _fail_if_stuck(self, job: Mapping[str, Any], reason: str, age_s: float) -> None:
        """Make room for a pod that the namespace's quota refuses; it may fail once the search's pods have left it."""
        if EXCEEDED_QUOTA in reason and any(map(is_active, self.cluster.find("Pod", self.release.search.labels))):
            self._hold_search()
            self._crowded_at_s = time.monotonic()
        super()._fail_if_stuck(job, reason, min(age_s, time.monotonic() - self._crowded_at_s))

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
