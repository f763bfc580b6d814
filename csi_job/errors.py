"""The one tree of errors: each says in one line what is wrong, the value got, the values allowed, what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NUM_PROBLEMS_NAMED = 10  # a message names this many problems and counts the rest


class CsiJobError(Exception):
    """Base of every error a user can meet; the command line prints `str(error)` and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, allowed: object = None, hint: str = "") -> None:
        """Join the parts of the message into one line.

        Args:
            what: what is wrong, without a full stop.
            got: the offending value, quoted in the message where given.
            allowed: the values allowed, a phrase or a sequence of values.
            hint: what to do next, as an imperative sentence.

        """
        parts = [what]
        if got is not None:
            parts[0] += f", got {_quoted(got)}"
        if allowed is not None:
            parts.append(f"allowed: {_listed(allowed)}")
        if hint:
            parts.append(hint)
        super().__init__(" ".join("; ".join(parts).split()))


class ConfigurationError(CsiJobError):
    """A setting, flag, space or study that cannot be used as given."""

    exit_code = 2


class DataError(CsiJobError):
    """A label table, image, split or cache that cannot be used as given."""

    exit_code = 2

    def __init__(self, what: str, *, problems: Iterable[Problem] = (), **parts: object) -> None:
        """As `CsiJobError`, with the rows and files concerned."""
        super().__init__(what, **parts)  # type: ignore[arg-type]
        self.problems = tuple(problems)

    def render(self, *, identities: bool) -> str:
        """Return the one-line message with the first problems; file names only where `identities`."""
        if not self.problems:
            return str(self)
        named = [problem.render(identities=identities) for problem in self.problems[:NUM_PROBLEMS_NAMED]]
        num_more = len(self.problems) - len(named)
        rest = f" and {num_more} more" if num_more else ""
        return f"{self}: {', '.join(named)}{rest}"


class ModelFileError(CsiJobError):
    """A model file that is missing, torn, of another architecture, or holds more than weights."""

    exit_code = 2


class StudyFailedError(CsiJobError):
    """More trials failed than a study may have; until the cause is mended, going on is of no use."""

    exit_code = 3


class StorageUnavailableError(CsiJobError):
    """The database could not be reached within the time it is waited for."""


class StalledError(CsiJobError):
    """No batch ended within `trial.stall_s`."""


class InfeasibleTrialError(CsiJobError):
    """These hyperparameters cannot be trained (no memory at micro-batch 1, a loss that is not finite)."""


class CheckpointError(CsiJobError):
    """A checkpoint is torn, of another version, or missing."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written (a full disk, a read-only folder); the one before it is whole."""


class LeaseLostError(CsiJobError):
    """Another worker owns the trial now; nothing more of it may be written."""


class StopRequestedError(CsiJobError):
    """SIGTERM or SIGINT came; the exit code is the shell's 128 + signal number."""

    def __init__(self, signal_number: int) -> None:
        """Remember the signal for the exit code."""
        super().__init__(f"stopped by signal {signal_number}; the same command goes on where this one stopped")
        self.exit_code = 128 + signal_number


class ClusterError(CsiJobError):
    """The Kubernetes cluster refuses something, lacks something, or cannot be reached."""


class StageFailedError(CsiJobError):
    """A stage on the cluster failed for good; trying the same again is of no use."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One row or file that is wrong: `row` counts the table's lines from 1, the header included."""

    what: str
    row: int | None = None
    column: str = ""
    file_id: str = ""
    pseudonym: str = ""

    def render(self, *, identities: bool) -> str:
        """Return e.g. `row 7 column left_mid (3f9c…): score 9`."""
        place = [f"row {self.row}"] if self.row is not None else []
        if self.column:
            place.append(f"column {self.column}")
        name = self.file_id if identities else self.pseudonym
        if name:
            place.append(f"({name})")
        return f"{' '.join(place)}: {self.what}" if place else self.what


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    shortened = text if len(text) <= 200 else text[:197] + "..."  # noqa: PLR2004 - a message stays one line
    return f"'{shortened}'" if isinstance(value, str) else shortened


def _listed(allowed: object) -> str:
    if isinstance(allowed, str):
        return allowed
    values: Sequence[object] = list(allowed) if isinstance(allowed, (list, tuple, set, frozenset)) else [allowed]
    return ", ".join(str(value) for value in values)
