"""The search: this process runs the trials, or a worker per GPU does; `python -m csi_job.search` is such a worker."""

import contextlib
import functools
import gc
import logging
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from csi_job.cache.dataset import Cache
from csi_job.config import Settings
from csi_job.errors import CsiJobError, StopRequestedError, StorageUnavailableError
from csi_job.final_model.hyperparams import HyperparamsFile, read_hyperparams
from csi_job.final_model.train import FinalTraining
from csi_job.html.format import plural
from csi_job.report.figures.parameters import parallel_plot
from csi_job.report.figures.plots import write_best_params
from csi_job.report.page.page import refresh_results
from csi_job.report.study_view import view_study
from csi_job.storage.attributes import ENDED, uid_of
from csi_job.storage.database import study_deleted
from csi_job.storage.storage import open_storage, storage_of
from csi_job.study.definition import join_study
from csi_job.study.objective import training_objective
from csi_job.study.record import StudyRecord, read_record
from csi_job.study.relay import ERROR, FINISHED, Relay, stop_with_parent
from csi_job.study.status import study_status
from csi_job.study.worker import WorkerOptions, WorkerSummary, failure_reason, run_worker
from csi_job.study.worker_group import Environment, WorkerGroup
from csi_job.study_settings import baseline_of
from csi_job.terminal.live import LiveStudy, live_study
from csi_job.tracking.wandb import Tracker, WandbTracker
from csi_job.trial.trainer import keep_compiled

logger = logging.getLogger(__name__)
MIN_TIMEOUT_S = 1e-3


@dataclass(frozen=True)
class Search:
    """Runs trials until the study, from `define_study`, needs no more from these workers."""

    study: optuna.Study
    cache: Cache
    settings: Settings
    confirm: bool = False
    """Whether the workers then do the trainings that choose the winner."""
    own_process: bool = True
    """Whether this process may be ended if its training hangs."""

    def run(self, environments: Sequence[Environment]) -> None:
        """Start a worker in each environment, see `worker_environments`; a single one is this process."""
        state, max_epochs = study_status(self.study), self.settings.study.max_epochs
        logger.info("sampler %s, pruner %s", self.settings.study.sampler, self.settings.study.pruner)
        with live_study(
            self.study.study_name, target=state.target, num_finished=state.num_finished, max_epochs=max_epochs
        ) as live:
            if len(environments) == 1:
                self.work(live.worker(), live.trials_finished)
            else:
                self._run_workers(environments, live)

    def work(self, tracker: Tracker, on_finished: Callable[..., None]) -> None:
        """Run trials in this process and then, with `confirm`, the trainings that choose the winner.

        `on_finished` gets the number of finished trials; during the trainings, of those finished and of all.
        """
        start_s, limit_s = time.monotonic(), self.settings.study.timeout_s
        has_ended = self.confirm and bool(self.study.user_attrs.get(ENDED))
        wandb = WandbTracker.if_enabled(self.settings.tracking, self.study, self.settings.work)
        with wandb or contextlib.nullcontext():  # its last uploads go on during the trainings
            if not has_ended:
                self._run_trials([tracker, wandb] if wandb else [tracker], on_finished)
            status = study_status(self.study)
            if wandb is not None and not has_ended and status.is_finished:
                log_summary(wandb, self.study)
            left_s = limit_s and limit_s - (time.monotonic() - start_s)
            can_confirm = (status.is_finished or has_ended) and status.best
            if self.confirm and can_confirm and (left_s is None or left_s > 0):
                self._share_trainings(tracker, on_finished, left_s)

    def _share_trainings(self, tracker: Tracker, on_finished: Callable[..., None], timeout_s: float | None) -> None:
        """Do the trainings that choose the winner, together with the other workers."""
        study, settings = self.study, self.settings
        best = write_best_params(view_study(study), settings.folder.best_params(study.study_name))
        if best is None:
            raise study_deleted()
        file = read_hyperparams(best, default_study=study.study_name, default_max_epochs=settings.study.max_epochs)
        record = read_record(settings.storage, settings.work, study.study_name)
        options = WorkerOptions(trackers=[tracker], own_process=self.own_process)
        training = final_training(settings, self.cache, file, study, record, options, on_finished)
        limited = settings.study.model_copy(update={"timeout_s": timeout_s})
        replace(training, worker=limited).share_trainings(waits=False)

    def _run_trials(self, trackers: Sequence[Tracker], on_finished: Callable[[int], None]) -> None:
        """Run trials in this process, and refresh the report now and then."""
        study, settings = self.study, self.settings
        keep_compiled(settings.trial, settings.folder.compiled)

        def on_trial_finished(summary: WorkerSummary) -> None:
            on_finished(study_status(study).num_finished)
            if summary.outcomes.total() % settings.study.report_every == 0:
                refresh_results(study, settings.folder)

        run_worker(
            study,
            training_objective(self.cache.train, self.cache.validation, settings.trial),
            suggest=settings.space.suggest,
            settings=settings.study,
            work=settings.work,
            options=WorkerOptions(
                stall_s=settings.trial.stall_s,
                trackers=trackers,
                on_trial_finished=on_trial_finished,
                own_process=self.own_process,
                waits=self.confirm,
            ),
        )

    def _run_workers(self, environments: Sequence[Environment], live: LiveStudy) -> None:
        start_s, settings, study = time.monotonic(), self.settings, self.study
        trackers = {number: live.worker(number) for number in range(1, len(environments) + 1)}

        def request() -> bytes:
            limit_s = settings.study.timeout_s
            left_s = None if limit_s is None else max(limit_s - (time.monotonic() - start_s), MIN_TIMEOUT_S)
            sections = {
                "study": settings.study.model_copy(update={"timeout_s": left_s}),
                # The search is running, so a worker that joins it in an outage waits as long as the others do.
                "storage": settings.storage.model_copy(
                    update={"connect_s": settings.storage.outage_s, "create_tables": False}
                ),
            }
            own, level = settings.model_copy(update=sections), logging.getLogger("csi_job").level
            return pickle.dumps(_Request(own, self.cache.folder, uid_of(study.user_attrs), level, self.confirm))

        def on_event(number: int, kind: str, values: Sequence[Any]) -> None:
            if kind == FINISHED:
                live.trials_finished(*values)
            else:
                getattr(trackers[number], kind)(*values)

        if "CUDA_VISIBLE_DEVICES" in environments[0]:
            each = "one GPU"
        else:
            each = plural(int(environments[0]["OMP_NUM_THREADS"]), "thread")
        logger.info("starting %(workers)d workers with %(each)s each", {"workers": len(environments), "each": each})
        storage_of(study).engine.dispose()  # the workers have their own connections
        WorkerGroup(__spec__.name, environments, request, on_event).run()


def final_training(
    settings: Settings,
    cache: Cache,
    file: HyperparamsFile,
    study: optuna.Study | None,
    record: StudyRecord | None,
    options: WorkerOptions,
    on_finished: Callable[[int, int], None],
) -> FinalTraining:
    """Return what a final training by these settings trains; `on_finished` gets the finished trainings and all."""
    keep_compiled(settings.trial, settings.folder.compiled)
    return FinalTraining(
        work=settings.folder,
        cache=cache,
        file=file,
        study=study,
        baseline=baseline_of(settings, record),
        settings=settings.final_model,
        trial=settings.trial,
        evaluation=settings.evaluation,
        record=record,
        max_image_side_px=settings.radiographs.max_image_side_px,
        worker=settings.study.model_copy(update={"timeout_s": None}),
        options=replace(options, stall_s=settings.trial.stall_s),
        on_progress=lambda now: on_finished(now.num_finished, now.num_finished + now.num_left),
    )


def log_summary(wandb: WandbTracker, study: optuna.Study) -> None:
    """Log what the report shows of the trials within the study's space to Weights & Biases."""
    view = view_study(study)
    trials = [trial for trial in view.frozen_trials if trial.number not in view.outside]
    wandb.log_summary(view.importances.shares, trials, parallel_plot(view).figure)


@dataclass(frozen=True)
class _Request:
    settings: Settings
    cache: Path
    uid: str | None
    """The study's, in case another one gets its name."""
    log_level: int
    confirm: bool


def main() -> None:
    """Be one of several workers: read a request from standard input, run trials, and relay what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which sends SIGTERM
    gc.set_threshold(100_000, 20, 20)
    relay = Relay.on_stdout()
    request: _Request = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    stop_with_parent()
    package = logging.getLogger("csi_job")
    package.handlers, package.propagate = [relay], False
    package.setLevel(request.log_level)
    try:
        _run_request(request, relay)
    except StopRequestedError as error:
        sys.exit(error.exit_code)
    except CsiJobError as error:
        # Invalid input, too many failures or a database that is away concern every worker.
        ends_search = error.exit_code != 1 or isinstance(error, StorageUnavailableError)
        relay.send(ERROR, str(error), error.exit_code, ends_search)
        sys.exit(error.exit_code)
    except Exception as error:
        relay.send(ERROR, failure_reason(error), 1, False)
        raise


def _run_request(request: _Request, relay: Relay) -> None:
    settings = request.settings
    storage = open_storage(settings.storage, settings.work, create=False)
    try:
        study = join_study(storage, settings.study, settings.space)
    except KeyError:
        raise study_deleted() from None
    if uid_of(study.user_attrs) != request.uid:
        raise study_deleted()
    search = Search(study, Cache.open(request.cache, settings.cache.local_copy_gib), settings, request.confirm)
    search.work(relay, functools.partial(relay.send, FINISHED))


if __name__ == "__main__":
    main()
