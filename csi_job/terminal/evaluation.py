"""Evaluations and comparisons as tables for the terminal."""

from collections.abc import Iterable

from rich.console import Group, RenderableType

from csi_job.evaluation.difference import TRIVIAL
from csi_job.evaluation.evaluate import Comparison, Evaluation, Metric
from csi_job.evaluation.measures import METRIC_NAMES, SUMMARY_METRICS, metric_name
from csi_job.evaluation.run import EvaluationRun
from csi_job.html import format as fmt
from csi_job.radiographs.zones import UNKNOWN, ZONES
from csi_job.terminal.table import titled_table

ZONE_HEADINGS = {"f1_macro": "F1", "accuracy": "acc.", "mae": "MAE"}
TRIVIAL_NOTE = (
    "commonest, median: what answering that score of the training set, zone by zone, for every film would give."
)
COMPARISON_NOTE = (
    "base: the baseline; better in: share of patient resamples in which the model beats the baseline; noise: the "
    "interval of the difference includes 0. The verdict rests on the macro F1, chosen in advance; the other rows are "
    "not corrected for multiple comparisons. Intervals cover the choice of patients, not the randomness of training."
)


def render_run(run: EvaluationRun) -> RenderableType:
    """Return the model's metrics, then the comparison if there is one, and last what to do."""
    comparison = [render_comparison(run.comparison)] if run.comparison is not None else []
    answer = f"\n{run.decision.action}. {run.decision.evidence} {' '.join(run.decision.paragraphs)}".rstrip()
    return Group(render_evaluation(run.evaluation), *comparison, answer, *run.decision.warnings)


def render_evaluation(evaluation: Evaluation) -> RenderableType:
    """Return the metrics with intervals, the zones, both beside what trivial predictors score, and the warnings."""
    interval = f"{fmt.percent(evaluation.settings.confidence)} interval"
    title = f"{evaluation.model} on the {_images(evaluation)}"
    summary = titled_table(title, "metric", "value", interval, *TRIVIAL, "note", left=("metric", "note"))
    for name, shown_name in METRIC_NAMES.items():
        metric = evaluation.metrics[name]
        left_out = metric.interval.num_degenerate
        counted = f"undefined in {left_out} of {evaluation.settings.num_bootstrap} resamples" if left_out else ""
        note = metric.reason or metric.interval.reason or counted
        trivial = (_trivial(evaluation, who, name) for who in TRIVIAL)
        ends = fmt.interval(metric.interval.low, metric.interval.high) or fmt.MISSING
        summary.add_row(shown_name, fmt.score(metric.value), ends, *trivial, note)
    title = "per zone, over graded images"
    zones = titled_table(title, "zone", "graded", *ZONE_HEADINGS.values(), *TRIVIAL, left=("zone", *TRIVIAL))
    num_graded_Z = (evaluation.predictions.zones_NZ != UNKNOWN).sum(axis=0)
    for zone, num_graded in zip(ZONES, num_graded_Z, strict=True):
        names = {f"{zone}.{name}": heading for name, heading in ZONE_HEADINGS.items()}
        cells = (_with_interval(evaluation.metrics[name]) for name in names)
        trivial = (
            "\n".join(f"{heading} {_trivial(evaluation, who, name)}" for name, heading in names.items())
            for who in TRIVIAL
        )
        zones.add_row(zone, str(num_graded), *cells, *trivial)
    return Group(summary, zones, TRIVIAL_NOTE, *_warnings(evaluation.warnings))


def render_comparison(comparison: Comparison) -> RenderableType:
    """Return the differences with intervals, and the warnings about the baseline alone."""
    title = f"{comparison.model.model} compared with {comparison.baseline.model} on the {_images(comparison.model)}"
    interval = f"{fmt.percent(comparison.model.settings.confidence)} interval"
    headings = ("metric", "model", "base", "diff.", interval, "better in", "verdict")
    table = titled_table(title, *headings, left=("metric", "verdict"))
    for name in (*SUMMARY_METRICS, *(f"{zone}.f1_macro" for zone in ZONES)):
        entry = comparison.differences[name]
        difference = fmt.MISSING if entry.difference is None else fmt.signed(entry.difference)
        ends = fmt.interval(entry.interval.low, entry.interval.high, fmt.signed) or fmt.MISSING
        better = fmt.MISSING if entry.share_better is None else f"{entry.share_better:.0%}"
        verdict = entry.verdict.replace("within the noise", "noise")
        values = (fmt.score(entry.model), fmt.score(entry.baseline), difference)
        table.add_row(metric_name(name), *values, ends, better, verdict)
    own = [warning for warning in comparison.baseline.warnings if warning not in comparison.model.warnings]
    return Group(table, COMPARISON_NOTE, *_warnings(own))


def _warnings(warnings: Iterable[str]) -> list[str]:
    return [f"Warning: {warning}." for warning in warnings]


def _trivial(evaluation: Evaluation, name: str, metric: str) -> str:
    """Return what a trivial predictor scores in a metric, e.g. in `left_inf.mae`."""
    zone, _, measure = metric.rpartition(".")
    entry = evaluation.trivial.get(name, {})
    group = entry.get("zones", {}).get(zone, {}) if zone else entry.get("metrics", {})
    return fmt.score(group.get(measure, {}).get("baseline"))


def _images(evaluation: Evaluation) -> str:
    predictions = evaluation.predictions
    images, patients = fmt.plural(len(predictions), "image"), fmt.plural(predictions.num_patients, "patient")
    return f"{evaluation.split} set ({images} of {patients})"


def _with_interval(metric: Metric) -> str:
    """Return the value above its interval, on two lines, so that the table fits a terminal."""
    if metric.value is None:
        return fmt.MISSING
    low, high = metric.interval.low, metric.interval.high
    return f"{metric.value:.3f}" if low is None else f"{metric.value:.3f}\n{low:.2f}-{high:.2f}"
