"""The status of a study, for a terminal and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from csi_job.errors import DataError
from csi_job.html import format as fmt
from csi_job.storage.attributes import OUTCOMES, TrialOutcome
from csi_job.study.status import RunningStatus, StudyStatus
from csi_job.terminal.table import plain_table

MAX_ROWS = 20  # running trials and reasons shown; the rest is counted
OUTCOME_STYLES: dict[TrialOutcome, str] = {
    "complete": "green",
    "pruned": "yellow",
    "infeasible": "red",
    "failed": "bold red",
    "cancelled": "dim",
    "running": "cyan",
    "paused": "dim",
    "waiting": "dim",
}


def render_status(status: StudyStatus, *, has_model: bool = False) -> RenderableType:
    """Return the progress of a study, its best trial, what is running, what failed, and what to do next.

    `has_model` says whether there is a final model of this study.
    """
    numbers = {outcome: getattr(status, f"num_{outcome}") for outcome in OUTCOMES}
    shown = (outcome for outcome in OUTCOMES if numbers[outcome] or outcome in {"complete", "pruned"})
    outcomes = Text("  ").join(
        Text(f"{numbers[outcome]} {outcome}", style=OUTCOME_STYLES[outcome]) for outcome in shown
    )
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    share = min(status.num_finished / status.target, 1.0) if status.target else 0.0
    bar = ProgressBar(total=max(status.target, 1), completed=status.num_finished)
    line.add_row(f"{fmt.count(status.num_finished)} of {fmt.plural(status.target, 'trial')}", bar, f"{share:.0%}")
    parts: list[RenderableType] = [line, outcomes, Text(), _best(status)]
    if status.running:
        parts += [Text(), _running(status.running)]
    if confirmation := status.confirmation:
        total = fmt.plural(confirmation.num_finished + confirmation.num_left, "training")
        parts += [Text(), Text(f"Confirmation: {confirmation.num_finished} of {total} done{status.confirmed_after}")]
        parts += [_running(confirmation.running, "training")] if confirmation.running else []
    parts += [Text(), Text(_pace(status, has_model=has_model))]
    if status.failures:
        table = plain_table("Failed", "Reason", left=("Reason",))
        for reason, number in status.failures[:MAX_ROWS]:
            table.add_row(str(number), Text(reason))
        parts += [Text(), table]
    return Panel(Group(*parts), title=Text(status.name, style="bold"), title_align="left", padding=(1, 2))


def status_dict(status: StudyStatus) -> dict[str, Any]:
    """Return the status as plain values, for JSON."""
    content = asdict(status)
    failures = [{"reason": reason, "num_trials": number} for reason, number in status.failures]
    counts = {"num_finished": status.num_finished, "num_running": status.num_running}
    return {**content, **counts, "is_finished": status.is_finished, "failures": failures}


def status_json(status: StudyStatus) -> str:
    """Return the status as one JSON object."""
    return json.dumps(status_dict(status), ensure_ascii=False)


def status_from_dict(content: Mapping[str, Any]) -> StudyStatus:
    """Return the status from `status_dict`, without fields of a newer version; raise `DataError` if one is missing."""
    try:
        failures = [(item["reason"], item["num_trials"]) for item in content["failures"]]
        return TypeAdapter(StudyStatus).validate_python({**content, "failures": failures})
    except (KeyError, TypeError, ValidationError):
        raise DataError(
            "this status comes from another version of csi-job", hint="install the version that the release runs"
        ) from None


def _best(status: StudyStatus) -> RenderableType:
    best = status.best
    if best is None:  # the complete ones, if any, are of another program
        which = "No trial within the search space" if status.num_complete else "No trial"
        return Text(f"{which} is complete yet.", style="dim")
    f1 = (fmt.score(best.f1), "bold green")
    if best.gflops is None:
        head = Text.assemble("Best validation F1 ", f1, f" (trial {best.number})")
    else:
        cost = f" at {fmt.value(best.gflops)} GFLOPs per image: {best.rule}"
        head = Text.assemble(f"Chosen trial {best.number}, validation F1 ", f1, cost)
    return Group(head, Text(fmt.parameters(best.params), style="dim"))


def _running(trials: tuple[RunningStatus, ...], noun: str = "trial") -> RenderableType:
    headings = ("Running", "Epoch", "F1 so far", "Attempt", "Last heartbeat", "Worker")
    table = plain_table(*headings, left=("Worker",))
    for trial in trials[:MAX_ROWS]:
        heartbeat = fmt.MISSING if trial.lease_age_s is None else f"{fmt.duration(trial.lease_age_s)} ago"
        heartbeat = "orphaned, will be resumed" if trial.is_orphan else heartbeat
        cells = (epochs_done(trial), fmt.score(trial.f1), str(trial.attempt), heartbeat)
        style = "yellow" if trial.is_orphan else ""
        table.add_row(f"{noun} {trial.number}", *cells, Text(trial.host or fmt.MISSING), style=style)
    more = len(trials) - MAX_ROWS
    return Group(table, Text(f"and {more} more", style="dim")) if more > 0 else table


def epochs_done(trial: RunningStatus) -> str:
    """Return e.g. `3/30`, or `3` if the limit is unknown."""
    done = 0 if trial.epoch is None else trial.epoch + 1
    return f"{done}/{trial.max_epochs}" if trial.max_epochs else str(done)


def _pace(status: StudyStatus, *, has_model: bool) -> str:
    if status.is_finished and status.confirmation is not None and status.confirmation.num_left:
        return "The search is finished; its best candidates are trained with several seeds."
    if status.is_finished:
        then = "train the final model (csi-job train-optimized)"
        if has_model and status.is_confirmed:
            then = "evaluate the final model (csi-job evaluate)"
        return f"The study is finished. Add trials (--more-trials K) or {then}."
    if status.trials_per_h is None:
        why = "until a trial has finished" if status.num_running else "while no worker is running"
        return f"Time left: unknown {why}."
    left = f", about {fmt.duration(status.eta_s)} left" if status.eta_s is not None else ""
    limit = " until study.max_epochs_total is reached" if left and status.ends_by_epochs else ""
    return f"{status.trials_per_h:.1f} trials per hour{left}{limit}"
