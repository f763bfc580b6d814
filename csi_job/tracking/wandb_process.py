"""The process of a Weights & Biases run, or of several after each other: it reads JSON lines and may block.

The first line of a run has its arguments, each other one an epoch, the outcome, or the file of a study's summary.
"""

import json
import os
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import IO, Any, Final

from csi_job.tracking.settings import MODES

INIT_TIMEOUT_S: Final = 20.0
FINISH_TIMEOUT_S: Final = 120.0  # for the last upload of a run; `wandb sync` can complete it later
CLOSE_TIMEOUT_S: Final = 30.0  # for writing the rest of a run's file


def main(lines: IO[str], problems: IO[str]) -> None:
    """Keep each run open until its lines end; a problem that the search should know goes to `problems`."""
    run, mode, outcome = None, "", "released"
    for line in lines:
        message = json.loads(line)
        if "project" in message:
            if run is not None and not _finish(run, outcome, problems):
                mode = "offline"
            run, mode = _open_run({"mode": mode} | message, problems)
            outcome = "released"
        assert run is not None
        if "metrics" in message:
            run.log({**message["metrics"], "epoch": message["step"] + 1}, step=message["step"], commit=True)
        if "outcome" in message:
            outcome = message["outcome"]
            run.summary["outcome"] = outcome
        if "summary" in message:
            _log_summary(run, Path(message["summary"]))
            outcome = "complete"
    if run is not None:
        _finish(run, outcome, problems)


def _finish(run: Any, outcome: str, problems: IO[str]) -> bool:
    """End a run and complete its file in the work folder; return whether its upload ended in time too."""
    import wandb

    is_uploaded = True
    timer = threading.Timer(run.settings.finish_timeout + CLOSE_TIMEOUT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        run.finish(exit_code=1 if outcome in ("failed", "released") else 0)
    except TimeoutError:
        is_uploaded = False
        what = f"the server did not take a run's data within {run.settings.finish_timeout:g} s"
        _report(f"{what}; to upload such a run later: wandb sync --include-online {run.settings.sync_dir}", problems)
    wandb.teardown()  # it writes the file's end only now, and stops writing when this process ends
    timer.cancel()
    return is_uploaded


def _report(problem: str, problems: IO[str]) -> None:
    problems.write(f"{problem}\n")
    problems.flush()


def _open_run(arguments: dict[str, Any], problems: IO[str]) -> tuple[Any, str]:
    """Open a run, and return it and the mode that it is in."""
    import wandb

    init_timeout_s = time_limit_s("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_S)
    settings = wandb.Settings(
        init_timeout=init_timeout_s,
        finish_timeout=time_limit_s("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S),
        finish_timeout_raises=True,
        login_timeout=int(init_timeout_s),
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,  # host, user and command line are private
        x_disable_stats=True,
        x_transaction_log_flush_interval=1.0,  # a container may end before the upload does
        x_sync_dir_suffix=uuid.uuid4().hex[:8],  # else processes that open a run in the same second share its file
    )
    mode = arguments.pop("mode")
    if mode == "online":  # unless `wandb offline` or `wandb disabled` has stored another in a file
        mode = MODES.get(wandb.setup().settings.mode, mode)
    if mode == "online":
        try:
            return wandb.init(**arguments, mode="online", resume="allow", settings=settings), mode
        except Exception as error:  # noqa: BLE001 - whatever is wrong there, the run is kept here
            words = " ".join(str(error).split())[:200]
            _report(f"the server cannot be used ({words})", problems)
            wandb.teardown()  # else the id counts as in use
            mode = "offline"
    return wandb.init(**arguments, mode=mode, settings=settings), mode


def time_limit_s(variable: str, default: float) -> float:
    """Return the variable's value if it is a time, and not 0, by which W&B would wait without end."""
    try:
        seconds = float(os.environ.get(variable, ""))
    except ValueError:
        return default
    return seconds if 0 < seconds < threading.TIMEOUT_MAX else default


def _log_summary(run: Any, content: Path) -> None:
    import plotly.graph_objects
    import wandb

    summary = json.loads(content.read_text(encoding="utf-8"))
    content.unlink()
    importances = wandb.Table(columns=["parameter", "importance"], data=[*map(list, summary["importances"].items())])
    names = sorted({name for trial in summary["trials"] for name in trial})
    trials = wandb.Table(columns=names, data=[[trial.get(name) for name in names] for trial in summary["trials"]])
    parts = {
        "importances": wandb.plot.bar(importances, "parameter", "importance", title="Parameter importances"),
        "trials": trials,
    }
    if summary["parallel"]:
        parts["parallel_coordinate"] = wandb.Plotly(plotly.graph_objects.Figure(summary["parallel"]))
    run.log(parts)


if __name__ == "__main__":
    try:
        problems = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        with tempfile.TemporaryDirectory(prefix="csi-job-wandb-") as tempfile.tempdir:
            main(sys.stdin, problems)
    finally:
        os._exit(0)  # wandb's exit handlers, which remove its temporary files too, would wait for an unreachable server
