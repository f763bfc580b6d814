"""Experiment tracking with Weights & Biases, which never delays or fails a trial.

Each run has its own process (`wandb_process`), which gets its lines through a non-blocking pipe: an unreachable server,
a wrong key or a crash there costs a trial nothing. In our process `wandb.init` would block until its timeout, and one
process for all runs would hold back every run behind the one that waits.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, Self

import optuna
from optuna.trial import FrozenTrial

from csi_job.files import make_folder, write_atomic
from csi_job.storage.attributes import UID, TrialOutcome
from csi_job.tracking.settings import TrackingSettings, wandb_mode
from csi_job.work_folder import WorkFolder

logger = logging.getLogger(__name__)
UPLOAD_S: Final = 30.0  # how long a search waits at its end for the last uploads, which end with its container
STOP_S: Final = 5.0  # the same where it is stopped, or fails
HIDDEN_VARIABLES: Final = ("CSI_JOB_", "PG")  # may hold the database's password


class Tracker(Protocol):
    """Follows a worker's trials; no method may block or raise."""

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Mapping[str, Any]) -> None:
        """Take note that a trial starts, or resumes in another attempt."""

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch."""

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:
        """Take the outcome of a trial; None: another worker resumes it.

        A paused trial that is pruned has not been started again.
        """


class WandbTracker:
    """One Weights & Biases run per trial, in the study's group; another attempt at a trial resumes its run."""

    @classmethod
    def if_enabled(cls, settings: TrackingSettings, study: optuna.Study, work: Path) -> Self | None:
        """Return a tracker, or None if no project is named or the environment disables tracking; see `wandb_mode`."""
        if settings.wandb_project is None:
            return None
        if wandb_mode(settings) == "disabled":
            logger.info("Weights & Biases is disabled by the environment; nothing is tracked")
            return None
        return cls(settings, study, work)

    def __init__(self, settings: TrackingSettings, study: optuna.Study, work: Path) -> None:
        """Track the trials of a study, whose runs are stored in `<work>/wandb`."""
        self._settings = settings
        self._group = study.study_name
        self._uid = str(study.user_attrs.get(UID, study.study_name))
        self._folder = WorkFolder(work.absolute())
        self._is_offline = wandb_mode(settings) == "offline"
        self._run: subprocess.Popen[bytes] | None = None
        self._running: int | None = None
        self._ending: list[subprocess.Popen[bytes]] = []
        self._has_warned = False

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], phase: Mapping[str, Any]) -> None:
        """Open the trial's run."""
        config = {**params, **phase, "trial": number, "attempt": attempt}
        self._start(self._arguments(str(number), config, job_type="trial"))
        self._running = number

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:  # noqa: ARG002
        """Log an epoch's metrics."""
        self._send({"step": epoch, "metrics": metrics})

    def trial_ended(self, number: int, outcome: TrialOutcome | None) -> None:
        """Close the trial's run; those of several trials that were paused are opened and closed by one process."""
        if number != self._running:
            arguments = self._arguments(str(number), {}, job_type="trial")
            if self._run is None:
                self._start(arguments)
            else:
                self._send(arguments)
        self._send({"outcome": outcome or "released"})
        if number == self._running:
            self._end_run()

    def log_summary(
        self, importances: Mapping[str, float], trials: Iterable[FrozenTrial], parallel: Mapping[str, Any] | None
    ) -> None:
        """Log a run with the importances, a table of the trials, and their parallel coordinates if there are any."""
        self._start(self._arguments("summary", {}, job_type="summary"))
        if self._run is None:
            return
        rows = [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "val_f1": trial.values[0] if trial.values else None,
                **trial.params,
            }
            for trial in trials
        ]
        summary = {"importances": importances, "trials": rows, "parallel": parallel}
        content = self._folder.wandb_summary(self._uid)
        try:
            write_atomic(content, json.dumps(summary))
        except OSError as error:
            logger.warning("cannot write the study's summary for Weights & Biases: %s", error.strerror)
        else:
            self._send({"summary": str(content)})
        self._end_run()

    def __enter__(self) -> Self:
        """Return the tracker."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last uploads."""
        self.close(UPLOAD_S if kind is None else STOP_S)

    def close(self, limit_s: float = UPLOAD_S) -> None:
        """Wait at most this long for the last uploads; without a container they go on after this process."""
        self._end_run()
        if not self._is_offline and any(process.poll() is None for process in self._ending):
            logger.info("waiting up to %.0f s for the last uploads to Weights & Biases", limit_s)
        deadline = time.monotonic() + limit_s
        for process in self._ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            self._read_problem(process)
            if process.poll() is None:
                option = "" if self._is_offline else "--include-online "
                self._warn_once(
                    f"a run is not complete yet; if it stays so: wandb sync {option}{self._folder.wandb}/RUN"
                )
        self._ending.clear()

    def _arguments(self, name: str, config: Mapping[str, Any], *, job_type: str) -> dict[str, Any]:
        """Return the arguments of a run, whose name within the study's group this is."""
        return {
            "project": self._settings.wandb_project,
            "entity": self._settings.wandb_entity,
            "group": self._group,
            "id": f"{self._uid}-{name}",
            "name": f"{self._group} {name}",
            "job_type": job_type,
            "config": {**config, "study": self._group},
        }

    def _start(self, arguments: Mapping[str, Any]) -> None:
        """Start the process of a run."""
        self._end_run()
        for process in self._ending:
            self._read_problem(process)
        self._ending = [process for process in self._ending if process.poll() is None]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN_VARIABLES)}
        environment["WANDB_DIR"] = str(self._folder.root)
        try:
            if self._settings.wandb_api_key_file is not None and not self._is_offline:
                environment["WANDB_API_KEY"] = self._settings.wandb_api_key_file.read_text(encoding="utf-8").strip()
            make_folder(self._folder.wandb)
            self._run = subprocess.Popen(
                [sys.executable, "-P", "-m", "csi_job.tracking.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the search only
            )
        except OSError as error:
            self._warn_once(f"cannot start ({error.strerror}: {error.filename})")
            return
        except UnicodeDecodeError:
            self._warn_once(f"cannot start (not text: {self._settings.wandb_api_key_file})")
            return
        for pipe in (self._run.stdin, self._run.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        self._send({**arguments, "mode": "offline" if self._is_offline else "online"})

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._run is None or self._run.stdin is None:
            return
        # A line that does not fit into the pipe now is dropped; writing a line of this size is atomic.
        with contextlib.suppress(OSError, ValueError):
            os.write(self._run.stdin.fileno(), (json.dumps(message, default=str) + "\n").encode())

    def _end_run(self) -> None:
        if self._run is not None:
            if self._run.stdin is not None:
                with contextlib.suppress(OSError):
                    self._run.stdin.close()
            self._ending.append(self._run)
        self._run = self._running = None

    def _read_problem(self, process: subprocess.Popen[bytes]) -> None:
        """Read why a run's process could not upload it, if so; later runs then start offline."""
        problem = b""
        if process.stdout is not None and not process.stdout.closed:
            with contextlib.suppress(OSError, ValueError):
                problem = process.stdout.read() or b""
            if process.poll() is not None:
                process.stdout.close()
        if problem:
            self._is_offline = True
            reason = problem.decode(errors="replace").strip()
            self._warn_once(f"{reason}; to upload offline runs later: wandb sync {self._folder.wandb}")

    def _warn_once(self, problem: str) -> None:
        if not self._has_warned:
            logger.warning("Weights & Biases: %s", problem)
            self._has_warned = True
