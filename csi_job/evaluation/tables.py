"""Tables of an evaluation, from its JSON, with what trivial predictors score beside every metric."""

from collections.abc import Callable
from typing import Any, NamedTuple

from csi_job.evaluation.measures import SUMMARY_METRICS, metric_name
from csi_job.html import format as fmt
from csi_job.html.blocks import Table
from csi_job.radiographs.zones import RISK_CLASSES, ZONE_NAMES, ZONES

Json = dict[str, Any]
METRICS = tuple(name for name in SUMMARY_METRICS if not name.startswith("risk_auroc_"))
ZONE_COLUMNS = {"f1_macro": "F1", "accuracy": "Accuracy", "mae": "MAE"}
TRIVIAL_COLUMNS = {"commonest": "Always commonest", "median": "Always median"}
TRIVIAL_NOTE = (
    "Always commonest, always median: what answering that score of the training set, zone by zone, for every film "
    "would give. A model that does not beat them has learned nothing of use."
)


class Measured(NamedTuple):
    """A metric or a difference with its interval; None if undefined or missing."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def measured(content: Json | None, name: str, zone: str = "") -> Measured:
    """Return a metric of an evaluation, or a difference of a comparison: of one zone, or of all zones together."""
    if content is None:
        return Measured()
    group = content.get("zones", {}).get(zone, {}) if zone else content.get("metrics", {})
    entry = group.get(name, {})
    low, high = entry.get("interval") or (None, None)
    return Measured(entry.get("value", entry.get("difference")), low, high)


def metrics_table(evaluation: Json, baseline: Json | None = None, comparison: Json | None = None) -> Table:
    """Return the metrics over all zones, of a model alone or beside its baseline with the differences."""
    columns = {"Model": evaluation} | ({"Baseline": baseline} if baseline else {})
    known = TRIVIAL_COLUMNS if _has_trivial(evaluation) else {}
    trivial = {label: evaluation["trivial"][name] for name, label in known.items()}
    rows = []
    for name in METRICS:
        row = [metric_name(name), *(_cell(column, name) for column in columns.values())]
        row += [fmt.score(entry["metrics"][name]["baseline"]) for entry in trivial.values()]
        if comparison is not None:
            outcome = comparison["metrics"].get(name, {}).get("outcome", fmt.MISSING)
            row += [_cell(comparison, name, fmt.signed), outcome.replace("within the noise", "could be chance")]
        rows.append(tuple(row))
    names = ("Metric", *columns, *trivial, *(("Difference", "Verdict") if comparison is not None else ()))
    verdict = "Verdict: the model compared with the baseline. Only the first row, chosen in advance, decides."
    notes = [verdict] * (comparison is not None) + [TRIVIAL_NOTE] * bool(trivial)
    return Table(names, tuple(rows), frozenset(range(1, len(names) - (comparison is not None))), " ".join(notes))


def zones_table(evaluation: Json) -> Table:
    """Return F1, accuracy and mean absolute error of each zone beside those of the trivial predictors."""
    trivial = list(evaluation["trivial"].values()) if _has_trivial(evaluation) else []
    rows = []
    for zone in ZONES:
        row = [ZONE_NAMES[zone], fmt.count(evaluation["zones"][zone]["num_graded"])]
        for name in ZONE_COLUMNS:
            row.append(fmt.score(measured(evaluation, name, zone).value))
            row += [fmt.score(entry["zones"][zone][name]["baseline"]) for entry in trivial]
        rows.append(tuple(row))
    columns = ["Zone", "Graded"]
    for name in ZONE_COLUMNS.values():
        columns += [name, *(f"{name}, {label.lower()}" for label in TRIVIAL_COLUMNS.values() if trivial)]
    return Table(
        tuple(columns), tuple(rows), frozenset(range(1, len(columns))), "Zone by zone, over the graded images."
    )


def risk_table(evaluation: Json) -> Table:
    """Return the confusion matrix of the risk classes."""
    counts_per_class = zip(RISK_CLASSES, evaluation["risk"]["confusion"], strict=True)
    rows = tuple((f"true {name}", *map(fmt.count, counts)) for name, counts in counts_per_class)
    columns = ("Risk class", *(f"predicted {name}" for name in RISK_CLASSES))
    caption = (
        "Images by true and predicted risk class. An AUROC rests on the patients of the rarer class: near 1 on a few "
        "of them, it is no certainty."
    )
    return Table(columns, rows, frozenset({1, 2, 3}), caption)


def _has_trivial(evaluation: Json) -> bool:
    return set(TRIVIAL_COLUMNS) <= set(evaluation.get("trivial", {}))


def _cell(content: Json | None, name: str, write: Callable[[float], str] = fmt.score) -> str:
    return fmt.with_interval(*measured(content, name), write)
