"""What an evaluation leaves in `models/evaluation/`: the numbers as JSON, the figures as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csi_job.errors import explain_os_errors
from csi_job.evaluation.compare import Comparison
from csi_job.evaluation.evaluate import Evaluation
from csi_job.evaluation.figures import confusion_plot, csi_plot, differences_plot, reliability_plot, roc_plot
from csi_job.files import json_text, write_atomic
from csi_job.html.plot import Plot
from csi_job.html.render import render


def write_evaluation(evaluation: Evaluation, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write `<stem>.json` and `<stem>_plots.html`, each atomically; return both.

    Raises:
        CsiJobError: the folder cannot be written.

    """
    plots = [plot(evaluation) for plot in (confusion_plot, csi_plot, roc_plot, reliability_plot)]
    title = f"{evaluation.model} on the {evaluation.split} set"
    page = _page("Evaluation", title, evaluation, evaluation.warnings, plots)
    return _write(folder, stem, evaluation.to_json(), page)


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write `comparison.json` and `comparison_plots.html`; return and errors as `write_evaluation`."""
    content = comparison.to_json()
    title = f"{comparison.model.model} compared with {comparison.baseline.model}"
    plots = [differences_plot(comparison)]
    page = _page("Comparison", title, comparison.model, content["warnings"], plots, comparison.summary)
    return _write(folder, "comparison", content, page)


def _page(
    kind: str, title: str, evaluation: Evaluation, warnings: Sequence[str], plots: Sequence[Plot], summary: str = ""
) -> str:
    """Return a page that opens without a network."""
    predictions = evaluation.predictions
    return render(
        "csi_job.evaluation",
        "evaluation.html.j2",
        eyebrow=f"{kind} · Congestion Score Index",
        title=title,
        images=f"{len(predictions)} images of {predictions.num_patients} patients. {evaluation.architecture}.",
        summary=summary,
        warnings=[f"{warning}." for warning in warnings],
        plots=plots,
        has_plots=True,
    )


def _write(folder: Path, stem: str, content: dict[str, Any], page: str) -> tuple[Path, Path]:
    numbers, figures = folder / f"{stem}.json", folder / f"{stem}_plots.html"
    with explain_os_errors("the evaluation cannot be written", folder, hint="free space, or choose another --work"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(figures, page)
        write_atomic(numbers, json_text(content))
    return numbers, figures
