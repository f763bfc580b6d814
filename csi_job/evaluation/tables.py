"""Evaluations and comparisons as tables for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from csi_job.evaluation.bootstrap import Interval
from csi_job.evaluation.compare import Comparison, Difference
from csi_job.evaluation.evaluate import Evaluation, Metric
from csi_job.evaluation.measures import SUMMARY_METRICS
from csi_job.radiographs.zones import RISK_CLASSES, ZONES

NAMES = {
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "csi_mae": "CSI mean: MAE",
    "csi_rmse": "CSI mean: RMSE",
    "csi_pearson_r": "CSI mean: r",
    "risk_auroc": "risk: AUROC",
    **{f"risk_auroc_{name}": f"  AUROC {name}" for name in RISK_CLASSES},
    "risk_accuracy": "risk: accuracy",
}
ZONE_HEADINGS = {"f1_macro": "F1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}
COMPARISON_NOTE = (
    "base: the baseline; better in: resamples of patients in which the model is the better one; noise: the interval "
    "of the difference includes 0. "
    "The outcome is about the macro F1, chosen beforehand; the other rows are not corrected for their number. "
    "Intervals cover the choice of patients, not the randomness of training."
)
MISSING = "-"


def render_evaluation(evaluation: Evaluation) -> RenderableType:
    """Return the metrics with intervals, the zones beside the majority class, and the warnings."""
    content = evaluation.to_json()
    return Group(_summary(evaluation, content["risk"]), _zones(evaluation, content["zones"]), *_warnings(content))


def render_comparison(comparison: Comparison) -> RenderableType:
    """Return the differences with intervals and the outcome in one sentence."""
    title = f"{comparison.model.model} against {comparison.baseline.model} on the {_images(comparison.model)}"
    table = _table(title, "metric")
    interval = f"{comparison.model.settings.confidence:.0%} interval"
    for heading in ("model", "base", "diff.", interval, "better in"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for name in (*SUMMARY_METRICS, *(f"{zone}.f1_macro" for zone in ZONES)):
        table.add_row(*_difference_row(comparison.differences[name]))
    return Group(table, comparison.outcome, COMPARISON_NOTE)


def metric_name(name: str) -> str:
    """Return a metric's name for people, e.g. `F1, right_sup` for `right_sup.f1_macro`."""
    zone, _, _ = name.rpartition(".")
    return f"F1, {zone}" if zone else NAMES[name]


def _table(title: str, heading: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(heading, no_wrap=True)
    return table


def _summary(evaluation: Evaluation, risk: dict[str, object]) -> Table:
    table = _table(f"{evaluation.model} on the {_images(evaluation)}", "metric")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column(f"{evaluation.settings.confidence:.0%} interval", justify="right", no_wrap=True)
    table.add_column("note")
    for name in SUMMARY_METRICS:
        metric = evaluation.metrics[name]
        note = _note(metric, evaluation.settings.num_bootstrap)
        if name == "risk_accuracy" and metric.value is not None:
            note = f"always {risk['majority_class']}: {_number(risk['majority_accuracy'])}"
        table.add_row(NAMES[name], _number(metric.value), _interval(metric.interval), note)
    return table


def _zones(evaluation: Evaluation, zones: dict[str, dict[str, object]]) -> Table:
    table = _table("by zone, over graded images; commonest: what always predicting the commonest score reaches", "zone")
    for heading in ("graded", *ZONE_HEADINGS.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("commonest", no_wrap=True)
    for zone in ZONES:
        metrics = [evaluation.metrics[f"{zone}.{name}"] for name in ZONE_HEADINGS]
        majority = f"F1 {_number(zones[zone]['majority_f1'])}\nacc. {_number(zones[zone]['majority_accuracy'])}"
        cells = (_with_interval(metric) for metric in metrics)
        table.add_row(zone, str(zones[zone]["num_graded"]), *cells, majority)
    return table


def _difference_row(difference: Difference) -> tuple[str, ...]:
    return (
        metric_name(difference.metric),
        _number(difference.model),
        _number(difference.baseline),
        _number(difference.difference, "+"),
        _interval(difference.interval, "+"),
        _share(difference.share_better),
        "noise" if difference.outcome == "within the noise" else difference.outcome,
    )


def _note(metric: Metric, num_resamples: int) -> str:
    """Return why there is no number or interval, or how many resamples the interval had to leave out."""
    left_out = metric.interval.num_degenerate
    counted = f"undefined in {left_out} of {num_resamples} resamples" if left_out else ""
    return metric.reason or metric.interval.reason or counted


def _images(evaluation: Evaluation) -> str:
    predictions = evaluation.predictions
    return f"{evaluation.split} set ({len(predictions)} images of {predictions.num_patients} patients)"


def _warnings(content: dict[str, list[str]]) -> list[str]:
    return [f"Warning: {sentence}." for sentence in content["warnings"]]


def _number(value: object, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if isinstance(value, float) else MISSING


def _interval(interval: Interval, sign: str = "") -> str:
    return MISSING if interval.low is None else f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def _with_interval(metric: Metric) -> str:
    """Return the value over its interval, in two lines, so that the table fits a terminal."""
    if metric.value is None:
        return MISSING
    low, high = metric.interval.low, metric.interval.high
    return f"{metric.value:.3f}" if low is None else f"{metric.value:.3f}\n{low:.2f}-{high:.2f}"


def _share(share: float | None) -> str:
    return MISSING if share is None else f"{share:.0%}"
