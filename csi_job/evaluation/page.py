"""What an evaluation leaves in `models/evaluation/`: the numbers as JSON, the figures as one page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csi_job.errors import explain_os_errors
from csi_job.evaluation.compare import Comparison
from csi_job.evaluation.evaluate import Evaluation
from csi_job.files import json_text, write_atomic

Section = tuple[str, str, Any]  # heading, caption, plotly figure
COMPARISON_STEM = "comparison"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#22303c;max-width:940px;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2.2rem 0 .2rem}p{margin:.2rem 0 .6rem;max-width:46rem}"
    ".quiet{color:#5b6670}"
)


def evaluation_folder(work: Path) -> Path:
    """Return the folder of all evaluations."""
    return work / "models" / "evaluation"


def write_evaluation(evaluation: Evaluation, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write `<stem>.json` and `<stem>_plots.html`, each whole or not at all; return both.

    Raises:
        CsiJobError: the folder cannot be written.

    """
    from csi_job.evaluation import figures as plots

    predictions = evaluation.predictions
    images = f"{len(predictions)} images of {predictions.num_patients} patients"
    sections = [
        (
            "Scores of the zones",
            (
                "Where the zones lie on the film: the patient's right is on the left side. Numbers are images, colours "
                "the share of each true score."
            ),
            plots.confusion_figure(evaluation),
        ),
        (
            "CSI mean",
            "Each marker is an image; dotted lines are the limits of the risk classes.",
            plots.csi_figure(evaluation),
        ),
        (
            "Risk class",
            (
                "Each class against the rest, by the probability that the model gives it; area under the curve and its "
                f"{evaluation.settings.confidence:.0%} interval in the legend."
            ),
            plots.roc_figure(evaluation),
        ),
        (
            "Can its probabilities be believed?",
            "On the dashed line, the model is right as often as it says. Below it, it is too sure of itself.",
            plots.reliability_figure(evaluation),
        ),
    ]
    title = f"{evaluation.model} on the {evaluation.split} set"
    page = _page(title, f"{images}. {evaluation.architecture}. {_caution()}", evaluation.warnings, sections)
    return _write(folder, stem, evaluation.to_json(), page)


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write `comparison.json` and `comparison_plots.html`; return and errors as `write_evaluation`."""
    from csi_job.evaluation import figures as plots

    content = comparison.to_json()
    caption = (
        f"The model minus the baseline with {comparison.model.settings.confidence:.0%} intervals over patients; errors "
        "are turned round, so that to the right is better. CSI errors are in score points, the rest are shares."
    )
    sections = [("Differences", caption, plots.differences_figure(comparison))]
    title = f"{comparison.model.model} against {comparison.baseline.model}"
    page = _page(title, f"{comparison.outcome} {_caution()}", content["warnings"], sections)
    return _write(folder, COMPARISON_STEM, content, page)


def _write(folder: Path, stem: str, content: dict[str, Any], page: str) -> tuple[Path, Path]:
    numbers, figures = folder / f"{stem}.json", folder / f"{stem}_plots.html"
    with explain_os_errors("the evaluation cannot be written", folder, hint="free space, or choose another --work"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(figures, page)
        write_atomic(numbers, json_text(content))
    return numbers, figures


def _page(title: str, lead: str, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a page that opens without a network: plotly is in it once."""
    from plotly.offline import get_plotlyjs

    notes = "".join(f"<p class=quiet>{html.escape(sentence)}.</p>" for sentence in warnings)
    body = "".join(
        f"<h2>{html.escape(heading)}</h2><p class=quiet>{html.escape(caption)}</p>{_fragment(figure)}"
        for heading, caption, figure in sections
    )
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
        f"</head><body><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{notes}{body}</body></html>\n"
    )


def _fragment(figure: Any) -> str:
    options = {"displayModeBar": False, "responsive": True}
    fragment: str = figure.to_html(full_html=False, include_plotlyjs=False, config=options)
    return fragment


def _caution() -> str:
    return "For research, not for clinical use."
