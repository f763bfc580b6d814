"""The study as the controller sees it: reads that survive database outages, and the search's usage."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from csi_job.cluster.budget import Usage
from csi_job.cluster.stages import START_OVER
from csi_job.errors import ConfigurationError, CsiJobError, NoStudyError
from csi_job.logs import RepeatedWarnings
from csi_job.storage.attributes import ENDED, USED, USED_UNTIL, number_of

if TYPE_CHECKING:
    import optuna

    from csi_job.config import Settings
    from csi_job.storage.storage import StudyStorage
    from csi_job.study.status import StudyStatus

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SLOW_S: Final = 1.0
AMOUNTS: Final = ("seconds", "gpu_seconds")  # of `Usage`
OUTCOMES = ("complete", "pruned", "infeasible", "failed", "paused")


class StudyWatch:
    """Opens the study on first use, and again after an error."""

    def __init__(self, settings: Settings, record: Callable[..., None] = lambda *_, **__: None) -> None:
        """Open nothing yet; `record` is given the reason and the message of an Event."""
        self._settings, self._record = settings, record
        self.num_outages, self.is_away = 0, False
        self.is_missing = False
        """Whether the database answers, but has no such study."""
        self.last: StudyStatus | None = None
        self._storage: StudyStorage | None = None
        self._study: optuna.Study | None = None
        self._warnings = RepeatedWarnings(logger)
        self._due_s = -math.inf

    def status(self) -> StudyStatus | None:
        """Return the study's status, None while it is unavailable."""
        from csi_job.study.status import study_status

        status = self._query(study_status)
        self.last = status or self.last
        return status

    def add_usage(self, usage_since: Callable[[float], Usage]) -> Usage | None:
        """Add what the search has used since its last metering; return the total, None while the study is unavailable.

        That time is stored in the same transaction, so that nothing counts twice, whatever becomes of the Job.
        """
        from csi_job.storage.optuna_private import study_id_of
        from csi_job.storage.storage import storage_of

        def add(study: optuna.Study) -> Usage:
            used = _usage(study.user_attrs)
            total = used + usage_since(used.until_s)
            stored = {USED: {part: getattr(total, part) for part in AMOUNTS}, USED_UNTIL: total.until_s}
            storage_of(study).set_study_user_attrs(study_id_of(study), stored)  # which only the controller writes
            return total

        return self._query(add)

    def end_search(self, *, ended: bool) -> bool:
        """Keep workers from starting trials, or let them again; return False while the study is unavailable.

        A study that does not exist stops nobody: the next worker creates it.
        """

        def end(study: optuna.Study) -> bool:
            if bool(study.user_attrs.get(ENDED)) is not ended:
                study.set_user_attr(ENDED, ended)
            return True

        return bool(self._query(end, missing=True))

    def _query(self, query: Callable[[optuna.Study], Result], missing: Result | None = None) -> Result | None:
        from sqlalchemy.exc import SQLAlchemyError

        began_s = time.monotonic()
        if began_s < self._due_s:
            self.is_missing = False  # it may exist by now
            return None
        try:
            result = query(self._open())
        except (CsiJobError, SQLAlchemyError, KeyError) as error:
            self._note_outage(_problem(error))
            self.is_missing = isinstance(error, (NoStudyError, KeyError))
            took_s = time.monotonic() - began_s
            if took_s > SLOW_S:  # then what the pods need does not wait for the next try
                self._due_s = began_s + 2 * took_s
            return missing if self.is_missing else None
        if self.is_away:
            self._record("DatabaseBack", f"the study is available again, after outage {self.num_outages}")
        self.is_away = self.is_missing = False
        return result

    def _note_outage(self, problem: str) -> None:
        if self._storage is not None:
            self._storage.close()
        self._storage = self._study = None
        self.num_outages += not self.is_away
        self._warnings.log(f"the study is unavailable: {problem}", outage=self.num_outages)
        if not self.is_away:
            message = f"the study is unavailable (outage {self.num_outages}): {problem}"
            self._record("DatabaseUnavailable", message, is_warning=True)
        self.is_away = True

    def _open(self) -> optuna.Study:
        from csi_job.storage.storage import open_storage
        from csi_job.study.definition import load_study

        if self._study is None:
            # The controller retries later rather than wait here.
            no_wait = self._settings.storage.model_copy(update={"connect_s": 0.0, "outage_s": 0.0})
            self._storage = open_storage(no_wait, self._settings.work, create=False)
            self._study = load_study(self._storage, self._settings.study.name)
        return self._study


def _problem(error: Exception) -> str:
    if isinstance(error, KeyError):  # raised by Optuna for a study that was deleted
        return f"it no longer exists; {START_OVER}"
    if isinstance(error, NoStudyError):
        return f"{str(error).partition('; ')[0]}; {START_OVER}"
    if isinstance(error, ConfigurationError):
        return f"{error}; correct the database's Secret, or the database, then the release continues by itself"
    return str(error) if isinstance(error, CsiJobError) else "the database does not answer"


def numbers_of(status: StudyStatus) -> dict[str, Any]:
    """Return the numbers of `summarize` by name."""
    numbers: dict[str, Any] = {"finished": status.num_finished, "target": status.target}
    numbers |= {name: getattr(status, f"num_{name}") for name in OUTCOMES}
    if status.best:
        numbers |= {"best_f1": status.best.f1, "best_trial": status.best.number}
    if found := status.confirmation:
        numbers |= {"confirmed": found.num_finished, "to_confirm": found.num_finished + found.num_left}
    return numbers


def summarize(status: StudyStatus) -> str:
    """Describe a study's status in one line."""
    numbers = numbers_of(status)
    counts = ", ".join(f"{numbers[name]} {name}" for name in OUTCOMES if numbers[name])
    trials = "{finished} of {target} trials finished".format(**numbers) + (f" ({counts})" if counts else "")
    best = "; best val_f1 {best_f1:.4f} (trial {best_trial})".format(**numbers) if status.best else ""
    confirmed = "; confirmation {confirmed} of {to_confirm}".format(**numbers) if status.confirmation else ""
    return f"{trials}{best}{confirmed}{status.confirmed_after}"


def _usage(attributes: Mapping[str, Any]) -> Usage:
    """Return what is stored of a study's usage; none of what another program stored in its place."""
    used = attributes.get(USED)
    amounts = {part: number_of(used if isinstance(used, Mapping) else {}, part) or 0.0 for part in AMOUNTS}
    return Usage(**amounts, until_s=number_of(attributes, USED_UNTIL) or 0.0)
