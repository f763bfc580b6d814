"""One trial under a lease: start or resume it, report its epochs, finish or release it."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import Row

from csi_job.errors import CheckpointWriteError, CsiJobError, StalledError, StorageUnavailableError, TrialPausedError
from csi_job.signals import Stop
from csi_job.storage import attributes as stored
from csi_job.storage.claim import RELEASE_S, Claim
from csi_job.storage.lease import Lease, worker_name
from csi_job.storage.optuna_private import frozen_trial_of
from csi_job.storage.rungs import Rungs
from csi_job.storage.storage import StudyStorage, storage_of
from csi_job.storage.trial_rows import TrialWrite, params_to_write
from csi_job.study.attempts import find_checkpoint, fresh_attempt_folder, keep_newest_checkpoint
from csi_job.study.heartbeat import Heartbeat
from csi_job.study.pruning import decide_at_rung, median_query, rungs_of, should_prune, should_prune_at_cost
from csi_job.study.sampling import Suggest, format_params, sample_params
from csi_job.study.settings import StudySettings
from csi_job.tracking.wandb import Tracker
from csi_job.trial.checkpoint import checkpoint_results, epoch_of
from csi_job.trial.schedule import EpochResult
from csi_job.work_folder import WorkFolder

logger = logging.getLogger(__name__)
Params = TypeVar("Params")
_FINAL_STATES: Final[dict[stored.TrialOutcome, TrialState]] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "infeasible": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass
class RunningTrial(Generic[Params]):
    """A claimed trial: an objective trains it, and calls its hooks.

    The objective calls `epoch_done` (or `report` and `end_if_behind`) after each epoch and `batch_done` in between, and
    lets through whatever they raise.
    """

    study: optuna.Study
    claim: Claim
    settings: StudySettings
    seed: int
    """The study's."""
    work: Path
    heartbeat: Heartbeat
    stop: Stop
    trackers: Sequence[Tracker] = ()
    noun: str = "trial"  # in logs

    trial: optuna.Trial = field(init=False)
    params: Params = field(init=False)
    max_epochs: int = field(init=False)
    """From the phase of the study in which the trial first started."""
    rungs: Rungs | None = field(init=False)
    """Where it may be paused."""
    checkpoint_folder: Path = field(init=False)
    """For this attempt's checkpoints, `epoch-<eeee>.pt`."""
    resume_from: Path | None = None
    checkpoint: Path | None = None
    """The newest checkpoint on the disk that is stored or about to be; initially `resume_from`."""
    curve: dict[int, float] = field(default_factory=dict)
    """Value of each finished epoch."""
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Training and validation loss of each finished epoch."""
    gflops: float | None = None
    """Cost per image; pruning with two objectives needs it."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """User attributes stored when the trial finishes."""
    unsent: TrialWrite = field(default_factory=TrialWrite)
    """What the database does not have yet."""
    saves_checkpoints: bool = False
    """Whether the training writes checkpoints; then an epoch counts as progress only once one is stored with it."""
    _runs: list[tuple[float, float | None, str]] = field(default_factory=list)
    """Of earlier attempts, if it was paused."""
    _start_s: float = field(default_factory=time.time)
    _away_since: float | None = None
    _num_epochs: int = 0
    _last_passed: int = -1
    """The last epoch that an earlier attempt finished without being pruned."""
    _median_row: Row[Any] | None = None
    """The result of `median_query` for the last epoch."""

    @property
    def lease(self) -> Lease:
        """The lease of this process."""
        return self.claim.lease

    @property
    def storage(self) -> StudyStorage:
        """The study's storage."""
        return storage_of(self.study)

    @property
    def number(self) -> int:
        """The trial's number."""
        return self.lease.number

    @property
    def attempt(self) -> int:
        """The attempt at the trial, from 1."""
        return self.lease.attempt

    @property
    def has_two_objectives(self) -> bool:
        """Whether the study has two objectives."""
        return len(self.study.directions) > 1

    def start(self, suggest: Suggest) -> None:
        """Sample the trial's parameters, or read the stored ones and find the checkpoint to resume from."""
        self.trial, self.params = sample_params(self.study, self.lease, suggest, self.settings, self.seed)
        known = frozen_trial_of(self.trial)
        self.max_epochs = stored.count_of(known.user_attrs, stored.MAX_EPOCHS) or self.settings.max_epochs
        self.rungs = rungs_of(self.study, known, self.settings)
        folder = WorkFolder(self.work).trial_checkpoints(self.study.study_name, self.number)
        self.checkpoint_folder = fresh_attempt_folder(folder, self.attempt, self.lease.uid)
        self.curve = dict(stored.curve_of(known))
        losses = stored.rows_of(known, stored.LOSSES, int, float, float)
        self.losses = {epoch: (train, val) for epoch, train, val in losses}
        if runs := stored.runs_of(known):
            self._runs = [run for run in runs if run[1] is not None]  # the others ended by a kill
            self.unsent.user_attrs |= self._runs_until(None)
        if self.claim.taken_over:
            self._resume(folder)
        self.attributes[stored.EPOCHS] = len(self.curve)
        phase: dict[str, Any] = {"sampler": self.settings.sampler, "pruner": self.settings.pruner}
        phase |= {"max_epochs": self.max_epochs} | ({} if self.noun == "trial" else {"noun": self.noun})
        for tracker in self.trackers:
            tracker.trial_started(self.number, self.attempt, self.trial.params, phase)
        if not self.claim.taken_over:
            text = format_params(self.trial.params) or str(self.params)
            self._log(logging.INFO, "starts: %(text)s", params=self.trial.params, text=text)
        elif self.rungs and self.curve:
            self.end_if_behind()  # which its last worker may have died too early to see

    def _resume(self, folder: Path) -> None:
        last = max(self.curve, default=-1)
        self._last_passed = max([last, *self.losses])  # the curve may be shorter, after `_reconcile`
        if self.rungs is not None and not self.claim.from_pause:
            self._last_passed -= 1
        stored_one = self.work / self.claim.checkpoint if self.claim.checkpoint else None
        found = find_checkpoint(folder, stored_one, last, attempt=self.attempt, uid=self.lease.uid)
        if epoch_of(found) != last:
            self._reconcile(found, last)
        self.resume_from = self.checkpoint = found
        first = epoch_of(found) + 2
        self._log(logging.INFO, "resumes at epoch %(epoch)d (attempt %(attempt)d)", epoch=first, attempt=self.attempt)

    def _reconcile(self, found: Path | None, last: int) -> None:
        """Make the stored epochs, the last of them `last`, match the checkpoint that the trial resumes from."""
        newest = epoch_of(found)
        curve = {epoch: value for epoch, value in self.curve.items() if epoch <= newest}
        write = TrialWrite()
        if found is not None and newest > last:
            saved = checkpoint_results(found)
            unstored = {epoch: result for epoch, result in saved.items() if last < epoch <= newest}
            curve |= {epoch: result["val_f1"] for epoch, result in unstored.items()}
            self._add_losses({epoch: result for epoch, result in unstored.items() if "val_loss" in result}, write)
        else:
            message = "has no intact checkpoint of epoch %(epoch)d in %(folder)s; "
            message += "epochs %(first)d to %(epoch)d are computed again"
            folder = WorkFolder(self.work).checkpoints(self.study.study_name)
            level = logging.INFO if found else logging.WARNING
            self._log(level, message, epoch=last + 1, first=newest + 2, folder=folder)
        if self.has_two_objectives:
            write.user_attrs[stored.CURVE] = [[epoch, curve[epoch]] for epoch in sorted(curve)]
        else:
            write.steps |= {epoch: value for epoch, value in curve.items() if epoch > last}
        self.storage.rewrite_steps(self.lease, newest + 1, write, self._relative(found))
        frozen_trial_of(self.trial).intermediate_values = {} if self.has_two_objectives else curve.copy()
        self.curve = curve

    def _add_losses(self, results: Mapping[int, Mapping[str, float]], write: TrialWrite) -> None:
        self.losses |= {epoch: (result["train_loss"], result["val_loss"]) for epoch, result in results.items()}
        write.user_attrs[stored.LOSSES] = [[epoch, *both] for epoch, both in self.losses.items()]

    def batch_done(self) -> None:
        """Note that the training makes progress.

        Raises:
            StopRequestedError: a signal came.
            LeaseLostError: another worker owns the trial now.
            StalledError: no batch had ended for too long; the lease may have expired.
            StorageRejectedError: the database rejects us for good, although it accepted us before.
        """
        self.heartbeat.beat()
        self.check()

    def check(self) -> None:
        """Raise what `batch_done` raises, without counting as progress."""
        self.stop.check()
        if self.lease.lost:
            raise self.lease.lost_error()
        if self.heartbeat.rejection:
            raise self.heartbeat.rejection
        if self.heartbeat.stalled:
            raise StalledError(f"{self.noun} {self.number} stalled")

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:
        """Store an epoch and the newest checkpoint; raise as `end_if_behind` does."""
        metrics = {
            "val_f1": result.val_f1,
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "learning_rate": result.learning_rate,
            "images_per_s": result.images_per_s,
        }
        self._add_losses({result.epoch: metrics}, self.unsent)
        self.report(result.epoch, result.val_f1, checkpoint=checkpoint)
        for tracker in self.trackers:
            tracker.epoch(self.number, result.epoch, metrics)
        self.end_if_behind()

    def checkpoint_failed(self, error: CheckpointWriteError) -> None:
        """Continue without checkpoints: a full disk is not the trial's fault, and would fail every later one too."""
        self.saves_checkpoints = False
        self._log(logging.WARNING, "continues without checkpoints: %(error)s", error=error)

    def report(self, epoch: int, value: float, *, checkpoint: Path | None = None) -> None:
        """Store the value of an epoch with the newest checkpoint, in one fenced transaction.

        While the database is unreachable, training continues and the epoch is stored with a later one. A pending
        signal is raised only afterwards, so that it costs no finished epoch.

        Raises:
            StorageUnavailableError: the database has been unreachable for `storage.outage_s`.
            LeaseLostError, StopRequestedError, StalledError: as for `batch_done`.
        """
        self.heartbeat.beat()
        self.curve[epoch] = value
        self.attributes[stored.EPOCHS] = len(self.curve)
        if checkpoint is not None or not self.saves_checkpoints:
            self._num_epochs += 1
        if self.has_two_objectives:
            self.attributes[stored.CURVE] = [[step, self.curve[step]] for step in sorted(self.curve)]
            self.unsent.user_attrs[stored.CURVE] = self.attributes[stored.CURVE]
        else:
            self.unsent.steps[epoch] = value
            frozen_trial_of(self.trial).intermediate_values[epoch] = value
        self.checkpoint = checkpoint or self.checkpoint
        self._store_and_read_median()
        self.check()

    def _store_and_read_median(self) -> None:
        changes: dict[str, Any] = {"num_epochs": self._num_epochs, "checkpoint": self._relative(self.checkpoint)}
        query = median_query(self.study, max(self.curve))
        try:
            self._median_row = self.storage.write_trial(self.lease, self.unsent, query, limit_s=0, **changes)
        except StorageUnavailableError as error:
            if self._away_since is None:
                self._away_since = time.monotonic()
                logger.warning("%s; training continues", error)
            if time.monotonic() - self._away_since >= self.storage.retry.limit_s:
                raise
            return
        if self._away_since is not None:
            away = {"seconds": time.monotonic() - self._away_since}
            logger.warning("the database is back after %(seconds).0f s", away)
        self.unsent, self._away_since = TrialWrite(), None

    def _relative(self, checkpoint: Path | None) -> str | None:
        return checkpoint.relative_to(self.work).as_posix() if checkpoint else None

    def end_if_behind(self) -> None:
        """Compare the trial with others at the same epoch; never in an outage, nor where it passed before.

        Raises:
            optuna.TrialPruned: it is worse.
            TrialPausedError: it is worse at present; `pause` it.
        """
        epoch = max(self.curve)
        if self._away_since is not None or epoch <= self._last_passed:
            return
        rival, may_continue = "others", True
        if self.rungs is not None:
            if epoch + 1 < self.max_epochs and epoch + 1 in self.rungs:
                trial = frozen_trial_of(self.trial)
                decision = decide_at_rung(self.study, trial, self.rungs)
                if decision == "pause":
                    raise TrialPausedError(f"paused after epoch {epoch + 1}")
                may_continue = decision == "continue"
        elif self.has_two_objectives:
            may_continue = self.gflops is None or not should_prune_at_cost(self.study, self.curve, self.gflops)
        else:
            rival = "median" if self.settings.pruner == "median" else "others"
            may_continue = not should_prune(self.study, frozen_trial_of(self.trial), self._median_row)
        if not may_continue:
            raise optuna.TrialPruned(f"below the {rival} at epoch {epoch + 1}")

    def finish(self, outcome: stored.TrialOutcome, values: Sequence[float] = (), reason: str = "") -> None:
        """Store how the trial ended.

        Like in Optuna, the last value of a pruned trial is its value. An infeasible trial gets a violated constraint,
        from which the sampler learns to avoid its kind.
        """
        write = self.unsent
        write.state = _FINAL_STATES[outcome]
        if outcome in ("complete", "pruned"):  # all of it again, in case the server lost what it had acknowledged
            write.params = params_to_write(frozen_trial_of(self.trial))
            write.steps = {} if self.has_two_objectives else self.curve.copy()
        write.user_attrs |= self.attributes | ({stored.REASON: reason} if reason else {})
        write.user_attrs |= self._last_of_several_runs()
        if outcome == "infeasible":
            write.user_attrs[stored.INFEASIBLE], write.system_attrs[stored.CONSTRAINT] = True, 1.0
        if outcome == "pruned" and self.curve and not self.has_two_objectives:
            last = self.curve[max(self.curve)]
            values = () if math.isnan(last) else (last,)
        write.values = values
        self.storage.write_trial(self.lease, write)
        text = (f" {values[0]:.4f}" if values else "") + (f" ({reason})" if reason else "")
        named = {"outcome": outcome, "epochs": len(self.curve), "values": list(values), "reason": reason, "text": text}
        self._log(logging.WARNING if outcome == "failed" else logging.INFO, "%(outcome)s%(text)s", **named)

    def pause(self) -> None:
        """Let the trial wait, with one checkpoint, until a claim promotes or prunes it."""
        keep_newest_checkpoint(self.checkpoint_folder, max(self.curve))
        self.unsent.user_attrs |= self.attributes | {stored.PAUSED: self.attempt} | self._runs_until(time.time())
        self.storage.release(self.lease, self.unsent)
        value = self.curve[max(self.curve)]
        self._log(logging.INFO, "paused after epoch %(epoch)d at %(value).4f", epoch=len(self.curve), value=value)

    def _runs_until(self, end_s: float | None) -> dict[str, Any]:
        return {stored.RUNS: [*self._runs, (self._start_s, end_s, worker_name())]}

    def _last_of_several_runs(self) -> dict[str, Any]:
        """Return the runs up to now, or nothing for a trial that was never paused: Optuna has its start and end."""
        return self._runs_until(time.time()) if self._runs else {}

    def release(self) -> None:
        """Let another worker resume the trial at once, and store what is unsent; wait `RELEASE_S` for the database."""
        self.heartbeat.watch(None)
        self.unsent.user_attrs |= self._last_of_several_runs()
        try:
            self.storage.release(self.lease, self.unsent, limit_s=RELEASE_S)
        except CsiJobError as error:
            self._log(logging.WARNING, "can be resumed only when its lease has expired: %(error)s", error=error)
            return
        next_epoch = max(self.curve, default=-1) + 2
        message = "released; the next worker resumes it at epoch %(epoch)d"
        if self.unsent.state is not None:  # stopped while its end was being stored
            message = "finished"
        elif stored.PAUSED in self.unsent.user_attrs:  # or its pause
            message = "paused"
        self._log(logging.INFO, message, epoch=next_epoch)

    def _log(self, level: int, message: str, **values: object) -> None:
        """Log what happens to the trial, with the values in the message by name."""
        sentence = f"%(noun)s %(trial)d {message}"
        logger.log(level, sentence, {"noun": self.noun, "trial": self.number, **values})


TrialObjective = Callable[[RunningTrial[Any]], Sequence[float]]
