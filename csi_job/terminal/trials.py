"""The trials of a study as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from csi_job.report import format as fmt
from csi_job.report.page.sections_result import search_ranges
from csi_job.report.study_view import TrialView, view_study

if TYPE_CHECKING:
    from optuna import Study


def render_trials(study: Study) -> RenderableType:
    """Return what a study searches and each of its trials, by number."""
    view = view_study(study)
    names = fmt.in_order({name for trial in view.trials for name in trial.params})
    space = "; ".join(f"{name}: {values}" for name, values in search_ranges(view).items())
    target = f" of {view.target}" if view.target is not None else ""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in ("Trial", "Outcome", "Best F1", "Epochs", *(["GFLOPs"] if view.has_cost else [])):
        table.add_column(title, justify="left" if title == "Outcome" else "right", no_wrap=True)
    table.add_column("Hyperparameters, and why it ended", overflow="fold")
    for trial in view.trials:
        cost = [fmt.value(trial.gflops)] if view.has_cost else []
        cells = (str(trial.number), trial.outcome, fmt.score(trial.f1), str(trial.num_epochs), *cost)
        table.add_row(*cells, Text(_last_cell(trial, names)))
    return Group(
        Text(f"study {view.name}: {view.num_finished}{target} trials finished", style="bold"),
        Text(f"search space: {space}", style="dim"),
        table,
    )


def _last_cell(trial: TrialView, names: list[str]) -> str:
    params = ", ".join(f"{name} {fmt.value(trial.params[name])}" for name in names if name in trial.params)
    return f"{params}; {trial.reason}" if trial.reason and params else trial.reason or params
