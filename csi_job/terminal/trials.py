"""The trials of a study as a table."""

from optuna import Study
from rich.console import Group, RenderableType
from rich.text import Text

from csi_job.html import format as fmt
from csi_job.report.page.sections_result import search_ranges
from csi_job.report.study_view import view_study
from csi_job.terminal.table import plain_table


def render_trials(study: Study) -> RenderableType:
    """Return what a study searches and each of its trials, by number."""
    view = view_study(study)
    space = "; ".join(f"{name}: {values}" for name, values in search_ranges(view).items())
    target = f" of {view.target}" if view.target is not None else ""
    last = "Hyperparameters, and why it ended"
    cost = ["GFLOPs"] if view.has_cost else []
    table = plain_table("Trial", "Outcome", "Best F1", "Epochs", *cost, last, left=("Outcome", last))
    for trial in view.trials:
        gflops = [fmt.value(trial.gflops)] if view.has_cost else []
        text = Text("; ".join(filter(None, [fmt.parameters(trial.params), trial.reason])))
        table.add_row(str(trial.number), trial.outcome, fmt.score(trial.f1), str(trial.num_epochs), *gflops, text)
    return Group(
        Text(f"study {view.name}: {view.num_finished}{target} trials finished", style="bold"),
        Text(f"search space: {space}", style="dim"),
        table,
    )
