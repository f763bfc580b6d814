"""Experiment tracking, which never delays or fails a trial.

Weights & Biases runs in a process of its own for each trial (`tracking_run`). Lines go to it through a pipe that is
never waited for; a server that does not answer, a wrong key or a crash there cost a trial nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from csi_job.logs import get_logger
from csi_job.storage.attributes import UID, TrialOutcome
from csi_job.tracking.settings import TrackingSettings
from csi_job.work_folder import WorkFolder

logger = get_logger(__name__)
CLOSE_S: Final = 5.0  # the end of a search waits so long for the last uploads, which go on behind it
HIDDEN_VARIABLES: Final = ("CSI_JOB_", "PG")  # may hold the database's password


class Tracker(Protocol):
    """Follows the trials of a worker; no method may wait or raise."""

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Mapping[str, Any]) -> None:
        """Take note that a trial starts, or resumes in another attempt."""

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch."""

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:
        """Take the outcome of a trial; None: another worker resumes it."""


class WandbTracker:
    """One Weights & Biases run a trial, in the group of the study, gone on with under the same id after a take-over."""

    def __init__(self, settings: TrackingSettings, study: optuna.Study, work: Path) -> None:
        """Track the trials of a study.

        Args:
            settings: project, team and mode.
            study: gives the group and the runs' ids.
            work: the runs are kept under `<work>/wandb`.

        """
        self._settings = settings
        self._group = study.study_name
        self._uid = str(study.user_attrs.get(UID, study.study_name))
        self._folder = WorkFolder(work.absolute())
        self._is_offline = settings.wandb_mode == "offline"
        self._run: subprocess.Popen[bytes] | None = None
        self._ending: list[subprocess.Popen[bytes]] = []
        self._was_told = False

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Mapping[str, Any]) -> None:
        """Open the trial's run."""
        config = {**params, **phase, "study": self._group, "trial": number, "attempt": attempt}
        self._start(f"{self._uid}-{number}", f"{self._group} {number}", config, job_type="trial")

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Log an epoch's metrics."""
        del number
        self._send({"step": epoch, "metrics": metrics})

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:
        """Close the trial's run."""
        del number
        self._send({"outcome": outcome or "released"})
        self._let_go()

    def study_summary(self, importances: Mapping[str, float], trials: list[dict[str, Any]], parallel: str) -> None:
        """Keep a run that sums the study up.

        Args:
            importances: of the parameters.
            trials: number, state, value and parameters of each.
            parallel: the parallel-coordinates figure as plotly JSON.

        """
        self._start(f"{self._uid}-summary", f"{self._group} summary", {"study": self._group}, job_type="summary")
        content = self._folder.wandb / f"{self._uid}-summary.json"
        try:
            text = json.dumps({"importances": importances, "trials": trials, "parallel": parallel})
            content.write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning("the study's summary for Weights & Biases cannot be written: %s", error.strerror)
        else:
            self._send({"summary": str(content)})
        self._let_go()

    def close(self) -> None:
        """Wait a little for the last uploads."""
        self._let_go()
        deadline = time.monotonic() + CLOSE_S
        for process in self._ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            self._hear(process)
        self._ending.clear()

    def _start(self, run_id: str, name: str, config: Mapping[str, Any], *, job_type: str) -> None:
        self._let_go()
        self._reap()
        arguments = {
            "project": self._settings.wandb_project,
            "entity": self._settings.wandb_entity,
            "group": self._group,
            "id": run_id,
            "name": name,
            "job_type": job_type,
            "mode": "offline" if self._is_offline else "online",
            "config": dict(config),
        }
        hidden = tuple(name for name in os.environ if name.startswith(HIDDEN_VARIABLES))
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["WANDB_DIR"] = str(self._folder.root)
        try:
            if self._settings.wandb_api_key_file is not None and not self._is_offline:
                environment["WANDB_API_KEY"] = self._settings.wandb_api_key_file.read_text(encoding="utf-8").strip()
            (self._folder.wandb).mkdir(parents=True, exist_ok=True)
            self._run = subprocess.Popen(
                [sys.executable, "-P", "-m", "csi_job.tracking.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the search alone
            )
        except OSError as error:
            self._tell(f"cannot start ({error.strerror}: {error.filename})")
            return
        for pipe in (self._run.stdin, self._run.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        self._send(arguments)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._run is None or self._run.stdin is None:
            return
        # A line that the pipe cannot take now is dropped; a pipe takes a line of this size whole or not at all.
        with contextlib.suppress(OSError, ValueError):
            os.write(self._run.stdin.fileno(), (json.dumps(message, default=str) + "\n").encode())

    def _let_go(self) -> None:
        if self._run is not None:
            if self._run.stdin is not None:
                with contextlib.suppress(OSError):
                    self._run.stdin.close()
            self._ending.append(self._run)
        self._run = None

    def _reap(self) -> None:
        for process in self._ending:
            self._hear(process)
        self._ending = [process for process in self._ending if process.poll() is None]

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        """Read what a run's process has to say: why it went offline."""
        words = b""
        if process.stdout is not None and not process.stdout.closed:
            with contextlib.suppress(OSError, ValueError):
                words = process.stdout.read() or b""
            if process.poll() is not None:
                process.stdout.close()
        if words:
            self._is_offline = True
            self._tell(f"{words.decode(errors='replace').strip()}; the runs are kept for `wandb sync` in")

    def _tell(self, words: str) -> None:
        if not self._was_told:
            logger.warning("Weights & Biases: %s %s", words, self._folder.wandb)
            self._was_told = True


MIN_TRIALS = 2  # with fewer there is nothing to compare


def track_study(study: optuna.Study, tracker: WandbTracker, importances: Mapping[str, float]) -> None:
    """Send the importances, a table of the trials and a parallel-coordinates view, which needs `MIN_TRIALS`."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    parallel = ""
    if len(complete) >= MIN_TRIALS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = optuna.visualization.plot_parallel_coordinate(study, target=_f1, target_name="val_f1")
            parallel = figure.to_json()
    tracker.study_summary(importances, [_row(trial) for trial in study.get_trials(deepcopy=False)], parallel)


def _f1(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _row(trial: FrozenTrial) -> dict[str, Any]:
    value = trial.values[0] if trial.values else None
    return {"trial": trial.number, "state": trial.state.name.lower(), "val_f1": value, **trial.params}
