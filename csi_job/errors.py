"""The error hierarchy. A message is one line: what is wrong, the value got, the values allowed, what to do next."""

import errno
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_ADVICE = {
    errno.ENOSPC: "free up some space",
    errno.EDQUOT: "free up some space",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the network file system again",
}
_SYSTEM_ERRNOS = (*_ADVICE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
CONTROLS: Final = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "?")  # files may hold commands for the terminal
NUM_PROBLEMS_NAMED = 10  # a message lists this many problems and counts the rest


class CsiJobError(Exception):
    """Base of every error shown to users; the command line prints `str(error)` and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, allowed: object = None, hint: str = "") -> None:
        """Join the parts of the message into one line.

        Args:
            what: the problem, without a full stop.
            got: the offending value, if it helps; quoted in the message.
            allowed: the values allowed, as a phrase or a sequence.
            hint: what to do next, in the imperative.
        """
        parts = [what]
        if got is not None:
            text = got if isinstance(got, str) else repr(got)
            text = text if len(text) <= 200 else text[:197] + "..."  # noqa: PLR2004 - a message stays one line
            parts[0] += f", got '{text}'" if isinstance(got, str) else f", got {text}"
        if allowed is not None:
            values = allowed if isinstance(allowed, (list, tuple, set, frozenset)) else (allowed,)
            parts.append(f"allowed: {', '.join(map(str, values))}")
        if hint:
            parts.append(hint)
        super().__init__(" ".join("; ".join(parts).split()).translate(CONTROLS))


class ConfigurationError(CsiJobError):
    """A setting, flag, search space or study cannot be used as given."""

    exit_code = 2


class NoStudyError(ConfigurationError):
    """There is no such study, or not yet."""


class DataError(CsiJobError):
    """A label table, image, split or cache cannot be used as given."""

    exit_code = 2

    def __init__(self, what: str, *, problems: Iterable["Problem"] = (), **parts: object) -> None:
        """Like `CsiJobError`, with the rows and files concerned."""
        super().__init__(what, **parts)  # type: ignore[arg-type]
        self.problems = tuple(problems)

    def render(self, *, identities: bool) -> str:
        """Return the message with the first problems; file names appear only if `identities` is true."""
        if not self.problems:
            return str(self)
        named = [problem.render(identities=identities) for problem in self.problems[:NUM_PROBLEMS_NAMED]]
        num_more = len(self.problems) - len(named)
        rest = f" and {num_more} more" if num_more else ""
        return f"{self}: {', '.join(named)}{rest}"


class ModelFileError(CsiJobError):
    """A model file is missing, truncated, of another architecture, or contains more than weights."""

    exit_code = 2


class StudyFailedError(CsiJobError):
    """Too many trials failed; rerunning is pointless until the cause is fixed."""

    exit_code = 3


class StorageUnavailableError(CsiJobError):
    """The database stayed unreachable until the retry timeout."""


class StorageRejectedError(StorageUnavailableError):
    """The database rejects us although it accepted us before, so a password or a right was changed."""


class ResourceError(CsiJobError):
    """A disk is full or has failed, a GPU is missing, or another resource of the system is exhausted."""


class StalledError(CsiJobError):
    """No batch finished within `trial.stall_s`."""


class InfeasibleTrialError(CsiJobError):
    """These hyperparameters cannot be trained (out of memory at micro-batch 1, or a non-finite loss)."""


class TrialPausedError(CsiJobError):
    """The trial is not among the best of its rung: it keeps its checkpoint and waits for others to fall behind."""


class OutsideSpaceError(CsiJobError):
    """A trial that another program enqueued has values outside the search space, so it is not trained."""


class CheckpointError(CsiJobError):
    """A checkpoint is missing, corrupt or of another version."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written (full disk, read-only folder); the previous one is intact."""


class LeaseLostError(CsiJobError):
    """Another worker owns the trial now; this one must write no more of it."""


class StopRequestedError(BaseException):
    """SIGTERM or SIGINT arrived; the exit code is 128 + the signal number, as in a shell.

    Like KeyboardInterrupt it is no `Exception`: a signal's handler may raise it anywhere, and no fallback may catch it.
    """

    def __init__(self, signal_number: int) -> None:
        """Name the signal in the message and the exit code."""
        cause = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        super().__init__(f"stopped by {cause}; run the same command again to resume")
        self.exit_code = 128 + signal_number


class ClusterError(CsiJobError):
    """The Kubernetes cluster is unreachable, rejects a request, or lacks something."""


class StageFailedError(CsiJobError):
    """A stage on the cluster failed permanently; retrying it unchanged is pointless."""

    exit_code = 3


@contextmanager
def explain_os_errors(
    what: str, got: object = None, *, kind: type[CsiJobError] = CsiJobError, hint: str = ""
) -> Iterator[None]:
    """Turn an OSError raised inside into a one-line error: `what` cannot be done, and the system's reason.

    Args:
        what: the failure, e.g. `the model cannot be written`.
        got: the path concerned.
        kind: the error to raise, for which `kind_of` may have another.
        hint: what to do next.
    """
    try:
        yield
    except OSError as error:
        place = None if got is None else str(got)
        raise kind_of(error, kind)(f"{what} ({error.strerror or error})", got=place, hint=advice(error, hint)) from None


def advice(error: OSError, hint: str = "") -> str:
    """Return what to do about a full or failed disk, or instead what `hint` says; only that if it is neither."""
    if (first := _ADVICE.get(error.errno or 0)) is None:
        return hint
    return f"{first}, or {hint}" if hint else f"{first} and run the same command again"


def kind_of(error: OSError, kind: type[CsiJobError]) -> type[CsiJobError]:
    """Return `kind`, or `ResourceError` if `kind` blames the input, or nothing, although the system failed."""
    is_open = kind is CsiJobError or kind.exit_code == ConfigurationError.exit_code
    return ResourceError if is_open and error.errno in _SYSTEM_ERRNOS else kind


@dataclass(frozen=True)
class Problem:
    """A faulty row or file; `row` counts the table's lines from 1, including the header.

    `image` is the path of its image within the folder of images, `identifying` the end of the message that names
    patients or files.
    """

    what: str
    row: int | None = None
    column: str = ""
    file_id: str = ""
    image: str = ""
    pseudonym: str = ""
    identifying: str = ""

    def render(self, *, identities: bool) -> str:
        """Return e.g. `row 7 column left_mid (3f9c…): score 9`, in one line whatever files are named."""
        place = [f"row {self.row}"] if self.row is not None else []
        if self.column:
            place.append(f"column {self.column}")
        name = ", ".join(dict.fromkeys(filter(None, (self.file_id, self.image)))) if identities else self.pseudonym
        if name:
            place.append(f"({name})" if place else name)
        what = f"{self.what}; {self.identifying}" if identities and self.identifying else self.what
        line = f"{' '.join(place)}: {what}" if place else what
        return "".join(character if character.isprintable() else "?" for character in line)
