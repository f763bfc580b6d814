"""A worker: claims a trial, runs it, tells its end, until the study needs it no more."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import optuna

from csi_job.errors import (
    ConfigurationError,
    CsiJobError,
    DataError,
    InfeasibleTrialError,
    LeaseLostError,
    StalledError,
    StopRequestedError,
    StorageUnavailableError,
)
from csi_job.logs import get_logger
from csi_job.signals import Stop, listening
from csi_job.storage.attributes import REASON
from csi_job.storage.claim import Claim, NothingToClaim, claim_trial
from csi_job.storage.lease import GIVEN_BACK_S, Lease, new_token, owner_name
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.storage import StudyStorage, storage_of
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.definition import study_seed
from csi_job.study.heartbeat import Keeper
from csi_job.study.resume import (
    CheckpointReader,
    Suggest,
    begin_trial,
    remove_checkpoints,
    remove_left_checkpoints,
    training_checkpoints,
)
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import (
    Ending,
    Objective,
    RunningTrial,
    check_device,
    completed,
    failed,
    failure_reason,
    infeasible,
    pruned,
)
from csi_job.tracking.wandb import NO_TRACKING, Tracker

logger = get_logger(__name__)
GIVE_BACK_S: Final = 10.0  # a stopping pod has 30 s
STALL_GRACE_S: Final = 10.0
MAX_POLL_S: Final = 2.0
PASSED_ON: Final = (
    StopRequestedError,
    LeaseLostError,
    StalledError,
    StorageUnavailableError,
    ConfigurationError,
    DataError,
)


@dataclass
class WorkerSummary:
    """What a worker did, and how the study stands."""

    endings: dict[Ending, int] = field(default_factory=lambda: dict.fromkeys(Ending, 0))
    """Number of trials by how they ended here."""
    num_taken_over: int = 0
    num_finished: int = 0
    """Finished trials of the whole study, when this worker last looked."""
    target: int = 0
    num_running_elsewhere: int = 0
    """Trials of the total that other live workers still ran."""
    timed_out: bool = False

    @property
    def num_told(self) -> int:
        """Return the number of trials whose end this worker told."""
        return sum(count for ending, count in self.endings.items() if ending is not Ending.LEFT)


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker does beside running trials."""

    stall_s: float = 1800.0
    """Seconds without a finished batch after which the trial is given up and the process ends."""
    tracker: Tracker = NO_TRACKING
    on_told: Callable[[WorkerSummary], None] = lambda _: None
    """Called after each trial that was told, e.g. to refresh plots; what it raises is logged."""
    own_process: bool = True
    """Whether this process may be ended when its training hangs; false in a notebook."""


def run_worker(
    study: optuna.Study,
    objective: Objective,
    *,
    suggest: Suggest,
    settings: StudySettings,
    work: Path,
    checkpoints: CheckpointReader | None = None,
    options: WorkerOptions | None = None,
) -> WorkerSummary:
    """Run trials until the study's total is reached, or covered by other live workers.

    A worker that finds no trial left watches the trials of others until each has ended or had its lease renewed: a
    trial whose worker was killed is thus taken over, and nobody waits for the long trial of a live one.

    Args:
        study: from `define_study`.
        objective: runs one trial and returns its values.
        suggest: draws a trial's parameters.
        settings: of the study.
        work: the work folder, where the checkpoints lie.
        checkpoints: how checkpoints are looked at; by default as the training writes them.
        options: what else there is.

    Raises:
        StopRequestedError: SIGTERM or SIGINT; the trial was given back.
        StorageUnavailableError: the database was away for too long.
        StalledError: no batch ended for `stall_s`.
        StudyFailedError: more trials failed than `settings.max_failed_trials`.
        CsiJobError: the GPU is lost.

    """
    with listening() as stop:
        reader = checkpoints or training_checkpoints()
        worker = _Worker(study, objective, suggest, settings, work, reader, options or WorkerOptions(), stop)
        return worker.run()


@dataclass
class _Worker:
    study: optuna.Study
    objective: Objective
    suggest: Suggest
    settings: StudySettings
    work: Path
    checkpoints: CheckpointReader
    options: WorkerOptions
    stop: Stop
    summary: WorkerSummary = field(default_factory=WorkerSummary)
    running: RunningTrial[Any] | None = None

    def __post_init__(self) -> None:
        self.storage: StudyStorage = storage_of(self.study)
        self.study_id = study_id_of(self.study)
        self.seed = study_seed(self.study)
        self.owner = owner_name()
        self.began = time.monotonic()
        self.keeper = Keeper(
            self.storage.renew, self.storage.lease_s, stall_s=self.options.stall_s, on_stall=self._on_stall
        )

    def run(self) -> WorkerSummary:
        with self.storage.patience.interrupted_by(self._check_while_waiting, self.stop.event):
            self.keeper.start()
            try:
                self._run_trials()
                remove_left_checkpoints(self.work, self.study)
            except KeyboardInterrupt:
                raise StopRequestedError(signal.SIGINT) from None
            finally:
                self.keeper.end()
        return self.summary

    def _check_while_waiting(self) -> None:
        """Let a signal end the wait for a database, which is no stall of the training, however long it takes."""
        self.keeper.beat()
        self.stop.check()

    def _run_trials(self) -> None:
        seen: dict[int, float] | None = None
        while not self._is_out_of_time():
            self.stop.check()
            claim = self._claim()
            if isinstance(claim, Claim):
                seen = None
                self._run_trial(claim)
            elif self._is_covered(claim, seen := claim.running if seen is None else seen):
                return
            else:
                self.stop.wait(min(MAX_POLL_S, self.storage.lease_s / 10) * random.uniform(0.5, 1.0))

    def _claim(self) -> Claim | NothingToClaim:
        return claim_trial(
            self.storage,
            self.study_id,
            token=new_token(),
            owner=self.owner,
            max_attempts=self.settings.max_attempts,
            max_failed=self.settings.max_failed_trials,
        )

    def _is_out_of_time(self) -> bool:
        limit_s = self.settings.timeout_s
        if limit_s is not None and time.monotonic() - self.began >= limit_s:
            logger.info("the time of %.0f s is over, no new trial is started", limit_s)
            self.summary.timed_out = True
        return self.summary.timed_out

    def _is_covered(self, nothing: NothingToClaim, seen: dict[int, float]) -> bool:
        """Return whether every trial that is left has a live owner: it began, or its lease was renewed, since."""
        summary, running = self.summary, nothing.running
        summary.num_finished, summary.target = nothing.num_finished, nothing.target
        summary.num_running_elsewhere = len(running)
        if any(seen.get(trial_id) == renewed for trial_id, renewed in running.items()):
            return False
        if running:
            logger.info("the last %d of %d trials run on other workers", len(running), nothing.target)
        elif not summary.num_told:
            logger.info("study %s has all its %d trials", self.study.study_name, nothing.target)
        return True

    def _run_trial(self, claim: Claim) -> None:
        lease, ending = claim.lease, Ending.LEFT
        self.storage.hold(lease)
        self.keeper.watch(lease)
        self.summary.num_taken_over += claim.taken_over
        try:
            ended, write = self._run_to_its_end(claim)
            self.storage.write_trial(lease, write)
            ending = ended
            self._say(lease.number, ending, write)
        except LeaseLostError as error:
            logger.warning("%s", error)
        except (StopRequestedError, KeyboardInterrupt, ConfigurationError, DataError):
            self._give_back(lease)
            raise
        finally:
            self.keeper.watch(None)
            self.storage.drop(lease)
            self.running = None
            self.summary.endings[ending] += 1
            self.options.tracker.trial_ended(lease.number, ending.value)
        if ending is not Ending.LEFT:
            remove_checkpoints(self.work, self.study.study_name, lease.number)
            self._call_back()

    def _run_to_its_end(self, claim: Claim) -> tuple[Ending, TrialWrite]:
        """Return how a trial ended and what is to be told of it."""
        try:
            self.running = self._begin(claim)
            return completed(self.running, self.objective(self.running))
        except PASSED_ON:
            raise
        except optuna.TrialPruned as error:
            return pruned(self.running, str(error) or "pruned")
        except InfeasibleTrialError as error:
            return infeasible(self.running, str(error))
        except Exception as error:
            check_device(error)
            logger.debug("trial %d", claim.lease.number, exc_info=True)
            return failed(self.running, failure_reason(error))

    def _begin(self, claim: Claim) -> RunningTrial[Any]:
        begun = begin_trial(self.study, claim, self.suggest, self.settings, self.seed, self.work, self.checkpoints)
        lease = claim.lease
        phase = {"sampler": self.settings.sampler, "pruner": self.settings.pruner, "max_epochs": begun.max_epochs}
        self.options.tracker.trial_started(lease.number, lease.attempt, begun.trial.params, phase)
        if not claim.taken_over:
            logger.info("trial %d starts: %s", lease.number, _listed(begun.trial.params))
        return RunningTrial(
            trial=begun.trial,
            params=begun.params,
            lease=lease,
            max_epochs=begun.max_epochs,
            seed=self.seed,
            work=self.work,
            checkpoint_folder=begun.checkpoint_folder,
            resume_from=begun.resume_from,
            promoted=begun.resume_from,
            curve=begun.curve,
            storage=self.storage,
            keeper=self.keeper,
            stop=self.stop,
            listener=self.options.tracker,
        )

    def _give_back(self, lease: Lease) -> None:
        """Free the trial at once, with what is yet unsaid of it; a database that is away is not waited for long."""
        self.keeper.watch(None)
        unsent = self.running.unsent() if self.running else TrialWrite()
        try:
            self.storage.write_trial(lease, unsent, limit_s=GIVE_BACK_S, check=False, renewed_at_s=GIVEN_BACK_S)
        except CsiJobError as error:
            logger.warning("trial %d is taken over when its lease has expired: %s", lease.number, error)
        else:
            logger.info("trial %d is given back; the next start goes on with it", lease.number)

    def _say(self, number: int, ending: Ending, write: TrialWrite) -> None:
        value = f" {write.values[0]:.4f}" if write.values else ""
        reason = write.user_attrs.get(REASON)
        level = logging.WARNING if ending is Ending.FAILED else logging.INFO
        logger.log(level, "trial %d %s%s%s", number, ending.value, value, f" ({reason})" if reason else "")

    def _call_back(self) -> None:
        try:
            self.options.on_told(self.summary)
        except StopRequestedError:
            raise
        except Exception as error:  # noqa: BLE001 - plots must not end the search
            logger.warning("after a trial: %s", failure_reason(error))

    def _on_stall(self) -> None:
        """End the process, in the thread that renews leases, if the main thread does not come back to see it."""
        logger.error("no batch ended for %.0f s: the trial is given up", self.options.stall_s)
        if self.options.own_process and not self.keeper.over.wait(min(STALL_GRACE_S, self.options.stall_s)):
            os._exit(StalledError.exit_code)


def _listed(params: dict[str, Any]) -> str:
    shown = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items())
    return ", ".join(shown)
