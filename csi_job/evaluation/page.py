"""The pages of an evaluation and of a comparison: the answer first, then tables and figures."""

from collections.abc import Sequence
from dataclasses import replace

from csi_job.evaluation.decision import Decision
from csi_job.evaluation.evaluate import Comparison, Evaluation
from csi_job.evaluation.figures import confusion_plot, csi_plot, differences_plot, reliability_plot, roc_plot
from csi_job.evaluation.tables import metrics_table, risk_table, zones_table
from csi_job.html import format as fmt
from csi_job.html.blocks import Figure, PageSection
from csi_job.html.links import Link
from csi_job.html.render import PLOTLY, render


def evaluation_page(evaluation: Evaluation, decision: Decision, links: Sequence[Link]) -> str:
    """Return the page about one model."""
    content = evaluation.to_json()
    metrics = PageSection("metrics", "Metrics", blocks=(metrics_table(content), zones_table(content)))
    plots = [plot(evaluation) for plot in (confusion_plot, csi_plot, roc_plot, reliability_plot)]
    sections = [metrics, *(PageSection(plot.key, plot.title, blocks=(Figure(plot),)) for plot in plots)]
    sections[3] = PageSection("roc", plots[2].title, blocks=(Figure(plots[2]), risk_table(content)))
    return _page(
        "Evaluation", f"{evaluation.model} on the {evaluation.split} set", evaluation, decision, sections, links
    )


def comparison_page(comparison: Comparison, decision: Decision, links: Sequence[Link]) -> str:
    """Return the page about a model and its baseline."""
    model, baseline = comparison.model.to_json(), comparison.baseline.to_json()
    metrics = metrics_table(model, baseline, comparison.to_json())
    plot = differences_plot(comparison)
    sections = [
        PageSection("differences", plot.title, blocks=(Figure(plot),)),
        PageSection("metrics", "Metrics", blocks=(metrics,)),
    ]
    title = f"{comparison.model.model} compared with {comparison.baseline.model}"
    model_with_all_warnings = replace(comparison.model, warnings=comparison.warnings)
    return _page("Comparison", title, model_with_all_warnings, decision, sections, links)


def _page(
    kind: str,
    title: str,
    evaluation: Evaluation,
    decision: Decision,
    sections: Sequence[PageSection],
    links: Sequence[Link],
) -> str:
    images, patients = len(evaluation.predictions), evaluation.predictions.num_patients
    return render(
        "csi_job.evaluation",
        "evaluation.html.j2",
        eyebrow=f"{kind} · Congestion Score Index",
        title=title,
        state=f"{fmt.plural(images, 'image')} of {fmt.plural(patients, 'patient')}. {evaluation.architecture}.",
        decision=decision,
        warnings=[f"{warning}." for warning in evaluation.warnings],
        sections=sections,
        links=links,
        has_plots=True,
        plotly_src=PLOTLY,
    )
