"""The study as the controller sees it: looks that outlive an outage of the database, and what the search has used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from csi_job.cluster.budget import Use
from csi_job.errors import CsiJobError
from csi_job.logs import get_logger
from csi_job.storage.attributes import USED

if TYPE_CHECKING:
    import optuna

    from csi_job.config import Settings
    from csi_job.study.status import StudyStatus

logger = get_logger(__name__)
Answer = TypeVar("Answer")


class StudyWatch:
    """Opens the study when it is first looked at, and again after an error."""

    def __init__(self, settings: Settings) -> None:
        """Remember where the study is."""
        self._settings = settings
        self._study: optuna.Study | None = None
        self._complaint = ""

    def look(self) -> StudyStatus | None:
        """Return how the study stands, None while that can't be known."""
        from csi_job.study.status import study_status

        return self._asked(study_status)

    def spend(self, use: Use) -> Use | None:
        """Add to what searching has used and return the total, None while the study does not answer."""
        return self._asked(lambda study: add_use(study, use))

    def _asked(self, ask: Callable[[optuna.Study], Answer]) -> Answer | None:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            answer = ask(self._opened())
        except KeyError:  # Optuna's word for a study that was deleted
            complaint = "it is not there any more"
        except CsiJobError as error:
            complaint = str(error)
        except SQLAlchemyError:
            complaint = "the database does not answer"
        else:
            self._complain("")
            return answer
        self._study = None
        self._complain(complaint)
        return None

    def _opened(self) -> optuna.Study:
        from csi_job.storage.storage import open_storage
        from csi_job.study.definition import load_study

        if self._study is None:
            # The controller has time: it looks again later rather than wait here.
            at_once = self._settings.storage.model_copy(update={"connect_s": 0.0, "outage_s": 0.0})
            storage = open_storage(at_once, self._settings.work, create=False)
            self._study = load_study(storage, self._settings.study.name)
        return self._study

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            logger.warning("the study can't be looked at: %s", complaint)
        self._complaint = complaint


def add_use(study: optuna.Study, use: Use) -> Use:
    """Add to what searching has used of a study, and return the total; the controller alone writes it."""
    total = Use(**study.user_attrs.get(USED, {})) + use
    study.set_user_attr(USED, asdict(total))
    return total


def story_of(status: StudyStatus) -> str:
    """Return how a study stands in one line."""
    outcomes = {
        "complete": status.num_complete,
        "pruned": status.num_pruned,
        "infeasible": status.num_infeasible,
        "failed": status.num_failed,
    }
    named = ", ".join(f"{number} {name}" for name, number in outcomes.items() if number)
    best = f"; best val_f1 {status.best.f1:.4f} (trial {status.best.number})" if status.best else ""
    return f"{status.num_finished} of {status.target} trials finished{f' ({named})' if named else ''}{best}"
