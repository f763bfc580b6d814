"""Live progress of a study: bars on a terminal, otherwise a log line now and then."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress

from csi_job.logs import PROGRESS_LOG_EVERY_S, progress_bars
from csi_job.storage.attributes import TrialOutcome

logger = logging.getLogger(__name__)


class LiveStudy:
    """Shows the trials of the study, and the running trial of each worker."""

    def __init__(self, bars: Progress, study_name: str, target: int, num_finished: int, max_epochs: int) -> None:
        """Start from the finished trials; without a target, only a confirmation is to come."""
        self._bars = bars
        self._max_epochs = max_epochs
        fields: Any = {"completed": num_finished, "unit": "trials", "visible": target > 0}
        self._study = bars.add_task(f"study {study_name}", total=target, **fields)

    def trials_finished(self, num_finished: int, num_trainings: int | None = None) -> None:
        """Update the number of finished trials, by all workers; or of trainings that confirm the winner, and of all."""
        fields: Any = {}
        if num_trainings is not None:
            fields = {"description": "confirmation", "total": num_trainings, "unit": "trainings", "visible": True}
        self._bars.update(self._study, completed=num_finished, **fields)

    def worker(self, number: int | None = None) -> "LiveWorker":
        """Return what shows the trials of a worker; its number is named if there are several."""
        return LiveWorker(self._bars, self._max_epochs, number)


class LiveWorker:
    """Shows the epochs of a worker's running trial; a tracker."""

    def __init__(self, bars: Progress, max_epochs: int, number: int | None) -> None:
        """Start without a trial."""
        self._bars = bars
        self._max_epochs = max_epochs
        self._number = number
        self._noun = "trial"
        self._logged_at = time.monotonic()
        self._task = bars.add_task("", total=max_epochs, visible=False, unit="epochs")

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Show a new trial's bar."""
        self._noun, self._max_epochs = phase.get("noun", "trial"), phase.get("max_epochs", self._max_epochs)
        self._bars.reset(self._task, total=self._max_epochs)
        self._bars.update(self._task, visible=True, description=self._named(f"{self._noun} {number}"))

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Advance the trial's bar, or log its progress now and then."""
        val_f1 = metrics["val_f1"]
        description = self._named(f"{self._noun} {number}, val_f1 {val_f1:.3f}")
        self._bars.update(self._task, completed=epoch + 1, description=description)
        if self._bars.disable and time.monotonic() - self._logged_at >= PROGRESS_LOG_EVERY_S:
            self._logged_at = time.monotonic()
            values = {"trial": number, "epoch": epoch + 1, "max_epochs": self._max_epochs, "val_f1": val_f1}
            if self._number is not None:
                values["worker"] = self._number
            message = f"{self._noun} %(trial)d: epoch %(epoch)d of at most %(max_epochs)d, val_f1 %(val_f1).4f"
            logger.info(self._named(message), values)

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:  # noqa: ARG002
        """Hide the trial's bar."""
        self._bars.update(self._task, visible=False)

    def _named(self, text: str) -> str:
        return text if self._number is None else f"worker {self._number}: {text}"


@contextmanager
def live_study(study_name: str, *, target: int, num_finished: int, max_epochs: int) -> Iterator[LiveStudy]:
    """Show the progress of a study towards its target of trials while workers run."""
    with progress_bars() as bars:
        yield LiveStudy(bars, study_name, target, num_finished, max_epochs)
