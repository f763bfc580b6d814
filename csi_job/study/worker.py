"""The worker: claim a trial, run it, finish it, until the study needs no more."""

import logging
import math
import os
import random
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import optuna

from csi_job.errors import (
    ConfigurationError,
    CsiJobError,
    DataError,
    InfeasibleTrialError,
    LeaseLostError,
    OutsideSpaceError,
    ResourceError,
    StalledError,
    StopRequestedError,
    StorageUnavailableError,
    TrialPausedError,
)
from csi_job.signals import Stop, listening
from csi_job.storage.attributes import REJECTED, TrialOutcome, seed_of
from csi_job.storage.claim import Claim, ClaimRules, NothingToClaim, claim_trial
from csi_job.storage.lease import new_token, worker_id
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.rungs import Rungs
from csi_job.storage.storage import storage_of
from csi_job.storage.study_rows import decoded_uid
from csi_job.study.attempts import remove_checkpoints, remove_leftover_checkpoints
from csi_job.study.heartbeat import Heartbeat
from csi_job.study.sampling import Suggest
from csi_job.study.settings import PAUSING, StudySettings
from csi_job.study.trial_run import RunningTrial, TrialObjective
from csi_job.tracking.wandb import Tracker

logger = logging.getLogger(__name__)
STALL_GRACE_S: Final = 10.0
MAX_POLL_S: Final = 2.0
MAX_REASON_CHARACTERS: Final = 200
DEVICE_LOST_WORDS: Final = ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "NCCL error", "device-side assert")
_PATH_LIKE: Final = re.compile(r"\S*[/\\]\S*|\S+\.(?:png|jpe?g|dcm|nii|gz|csv|npy|pt)\b", re.IGNORECASE)
_PACKAGE: Final = Path(__file__).parent.parent
# These say nothing about the trial, so it is not failed because of them: with other settings or data
# (`ConfigurationError`, `DataError`), running the same command again resumes it.
RERAISED: Final = (LeaseLostError, StalledError, StorageUnavailableError, ResourceError, ConfigurationError, DataError)


@dataclass
class WorkerSummary:
    """What a worker did."""

    outcomes: Counter[TrialOutcome] = field(default_factory=Counter)
    """Number of trials that this worker finished or paused, by outcome."""
    num_finished: int = 0
    """Finished trials of the whole study at this worker's last claim."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker does besides running trials."""

    stall_s: float = 1800.0
    """Seconds without a finished batch after which the worker gives up the trial and ends the process."""
    trackers: Sequence[Tracker] = ()
    on_trial_finished: Callable[[WorkerSummary], object] = lambda _: None
    """Called after each finished or paused trial, e.g. to refresh plots; its errors are logged."""
    own_process: bool = True
    """Whether this process may be ended when its training hangs; false in a notebook."""
    may_add: bool = True
    """Whether to sample new trials, or only to run those that are enqueued."""
    waits: bool = False
    """Whether to wait for the trials that other workers run, since there is more to do after them."""
    noun: str = "trial"
    """What a trial is called in logs."""


def run_worker(
    study: optuna.Study,
    objective: TrialObjective,
    *,
    suggest: Suggest,
    settings: StudySettings,
    work: Path,
    options: WorkerOptions | None = None,
) -> WorkerSummary:
    """Run trials until the study's target is reached, or covered by other live workers.

    A worker that finds no trial left watches the trials of others until each has ended or had its lease renewed. So it
    resumes the trial of a killed worker, but does not wait for a long trial of a live one.

    Args:
        study: from `define_study`.
        objective: runs one trial and returns its values.
        suggest: samples a trial's parameters.
        settings: of the study.
        work: the work folder, which holds the checkpoints.
        options: everything else.

    Raises:
        StopRequestedError: SIGTERM or SIGINT; the trial was released.
        StorageUnavailableError: the database was unreachable for too long.
        StalledError: no batch ended for `stall_s`.
        StudyFailedError: more trials failed than `settings.max_failed_trials`.
        ResourceError: a disk is full or has failed; the trial was released.
        CsiJobError: the GPU is lost.
    """
    with listening() as stop:
        return _Worker(study, objective, suggest, settings, work, options or WorkerOptions(), stop).run()


@dataclass
class _Worker:
    study: optuna.Study
    objective: TrialObjective
    suggest: Suggest
    settings: StudySettings
    work: Path
    options: WorkerOptions
    stop: Stop
    summary: WorkerSummary = field(default_factory=WorkerSummary)

    def __post_init__(self) -> None:
        self.storage = storage_of(self.study)
        self.seed = seed_of(self.study.user_attrs)
        self.uid = decoded_uid(self.storage.stored_uid_of(study_id_of(self.study)))
        self.worker_id = worker_id()
        settings = self.settings
        self.rules = ClaimRules(
            max_attempts=settings.max_attempts,
            max_failed=settings.max_failed_trials,
            may_add=self.options.may_add,
            rungs=Rungs(settings.min_resource, settings.reduction_factor) if settings.pruner in PAUSING else None,
        )
        self.start_s = time.monotonic()
        self.heartbeat = Heartbeat(
            self.storage.renew, self.storage.lease_s, stall_s=self.options.stall_s, on_stall=self._on_stall
        )

    def run(self) -> WorkerSummary:
        # A signal ends the wait for a database; however long that takes, it is no stall of the training.
        with self.storage.retry.interrupted_by(self.heartbeat.beat, self.stop.wait):
            self.heartbeat.start()
            try:
                self._run_trials()
                remove_leftover_checkpoints(self.work, self.study, self.uid)
            except KeyboardInterrupt:
                raise StopRequestedError(signal.SIGINT) from None
            finally:
                self.heartbeat.end()
        return self.summary

    def _run_trials(self) -> None:
        seen: dict[int, float] | None = None
        limit_s = self.settings.timeout_s
        while limit_s is None or time.monotonic() - self.start_s < limit_s:
            self.stop.check()
            study_id, token = study_id_of(self.study), new_token()
            claim = claim_trial(self.storage, study_id, self.rules, token=token, worker_id=self.worker_id)
            for number in claim.pruned:
                remove_checkpoints(self.work, self.study.study_name, number, self.uid)
                for tracker in self.options.trackers:
                    tracker.trial_ended(number, "pruned")
            if isinstance(claim, Claim):
                seen = None
                self._run_trial(claim)
                continue
            if claim.pruned:
                self._notify()
            if seen is None and self.options.waits and claim.running:
                values = {"running": len(claim.running), "target": claim.target, "nouns": f"{self.options.noun}s"}
                logger.info("waiting for the last %(running)d of %(target)d %(nouns)s on other workers", values)
            self.summary.num_finished = claim.num_finished
            seen = claim.running if seen is None else seen
            if self._others_will_finish(claim, seen):
                return
            self.stop.wait(min(MAX_POLL_S, self.storage.lease_s / 10) * random.uniform(0.5, 1.0))
        logger.info("time limit of %(limit_s).0f s reached; not starting another trial", {"limit_s": limit_s})

    def _others_will_finish(self, nothing: NothingToClaim, seen: dict[int, float]) -> bool:
        """Return whether each remaining trial has a live owner: it started, or its lease was renewed, since `seen`.

        With `options.waits`, only whether none remains.
        """
        running = nothing.running
        if running and self.options.waits:
            return False
        seen |= {id_: at_s for id_, at_s in running.items() if at_s < seen.get(id_, at_s)}  # the clock was set back
        if any(seen.get(trial_id) == renewed for trial_id, renewed in running.items()):
            return False
        if running:
            values = {"running": len(running), "target": nothing.target, "nouns": f"{self.options.noun}s"}
            logger.info("%(running)d of %(target)d %(nouns)s still running on other workers", values)
        elif not self.summary.outcomes:
            done = {"study": self.study.study_name, "target": nothing.target, "nouns": f"{self.options.noun}s"}
            logger.info("study %(study)s is complete (%(target)d %(nouns)s)", done)
        return True

    def _run_trial(self, claim: Claim) -> None:
        lease, outcome = claim.lease, None
        trial = RunningTrial[object](
            study=self.study,
            claim=claim,
            settings=self.settings,
            seed=self.seed,
            work=self.work,
            heartbeat=self.heartbeat,
            stop=self.stop,
            trackers=self.options.trackers,
            noun=self.options.noun,
        )
        self.storage.hold(lease)
        self.heartbeat.watch(lease)
        try:
            outcome = self._run_and_finish(trial)
            self.summary.outcomes[outcome] += 1
        except LeaseLostError as error:
            logger.warning("%s", error)
        except (StopRequestedError, KeyboardInterrupt, ResourceError, ConfigurationError, DataError):
            trial.release()
            raise
        finally:
            self.heartbeat.watch(None)
            self.storage.drop(lease)
            for tracker in self.options.trackers:
                tracker.trial_ended(lease.number, outcome)
        if outcome is not None:
            if outcome != "paused":
                remove_checkpoints(self.work, self.study.study_name, lease.number, self.uid)
            self._notify()

    def _run_and_finish(self, trial: RunningTrial[object]) -> TrialOutcome:
        values: list[float] = []
        try:
            trial.start(self.suggest)
            values = check_values(self.objective(trial), len(self.study.directions))
            outcome: TrialOutcome = "complete"
            reason = ""
        except RERAISED:
            raise
        except TrialPausedError:
            trial.pause()
            return "paused"
        except optuna.TrialPruned as error:
            outcome, reason = "pruned", str(error) or "pruned"
        except InfeasibleTrialError as error:
            outcome, reason = "infeasible", str(error)
        except OutsideSpaceError as error:
            outcome, reason = "failed", str(error)
            trial.attributes[REJECTED] = True
        except Exception as error:
            check_device(error)
            logger.debug("trial %d", trial.number, exc_info=True)
            outcome, reason = "failed", failure_reason(error)
        trial.finish(outcome, values, reason)
        return outcome

    def _notify(self) -> None:
        try:
            self.options.on_trial_finished(self.summary)
        except Exception as error:  # noqa: BLE001 - plots must not end the search
            logger.warning("after a trial: %s", failure_reason(error))

    def _on_stall(self) -> None:
        """Give the main thread time to notice, then end the process; runs in the heartbeat's thread."""
        logger.error("no batch ended for %(stall_s).0f s; giving up the trial", {"stall_s": self.options.stall_s})
        if self.options.own_process and not self.heartbeat.over.wait(min(STALL_GRACE_S, self.options.stall_s)):
            os._exit(StalledError.exit_code)


def check_values(values: Sequence[float], num_objectives: int) -> list[float]:
    """Return an objective's values as floats; raise `CsiJobError` if one is missing or not a number."""
    numbers = [float(value) for value in values]
    if len(numbers) != num_objectives or any(math.isnan(number) for number in numbers):
        raise CsiJobError(f"the objective returned {numbers}, {num_objectives} numbers are needed")
    return numbers


def failure_reason(error: BaseException) -> str:
    """Describe an error in one line that identifies no patient.

    Our own errors contain no identities. For others we keep the type, the place in this package, and the message
    without anything that looks like a path; a `KeyError` or an OS error may quote an identity, so its message goes.
    """
    if isinstance(error, CsiJobError):
        return str(error)
    words = ""
    if isinstance(error, OSError):
        words = error.strerror or ""
    elif not isinstance(error, LookupError):
        words = _PATH_LIKE.sub("…", " ".join(str(error).split()))
    frames = ((Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
    places = [
        f" in {path.relative_to(_PACKAGE).as_posix()}:{line}" for path, line in frames if _PACKAGE in path.parents
    ]
    parts = [type(error).__name__ + (places[-1] if places else ""), words]
    return ": ".join(part for part in parts if part)[:MAX_REASON_CHARACTERS]


def check_device(error: BaseException) -> None:
    """Raise `CsiJobError` if this process has lost its GPU, for every later trial would fail as well."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_LOST_WORDS):
        message = f"the GPU is lost to this process: {failure_reason(error)}"
        raise CsiJobError(message, hint="run the same command again to resume the trial") from None
