"""What to do with a model, from its evaluation and its comparison with the baseline, as stored in their JSON files."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

from csi_job.evaluation.measures import HEADLINE, LOWER_IS_BETTER, METRIC_NAMES
from csi_job.html import format as fmt

Json = dict[str, Any]

AGAINST_TRIVIAL: Final = ("f1_macro", "mae", "csi_mae", "risk_accuracy")
# A model that loses one of these to a trivial predictor is of no use.
INDISPENSABLE: Final = {"f1_macro": "macro F1", "mae": "mean absolute error per zone"}
COMPARE: Final = (
    "Compare the model with a baseline before using it: run csi-job evaluate, with --baseline FILE if none was trained "
    "with it"
)
MIN_PATIENTS: Final = 20  # with fewer, bootstrap intervals are known to be too narrow
POWER: Final = 0.8
MAX_TIMES_PATIENTS: Final = 100  # of those there are; asking for more would not help


@dataclass(frozen=True)
class Decision:
    """What to do now, as a phrase; why, what else to know, and what to keep in mind, each a sentence or several."""

    action: str
    evidence: str = ""
    paragraphs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def decide(
    evaluation: Json, comparison: Json | None = None, baseline: Json | None = None, num_patients_in_all: int = 0
) -> Decision:
    """Return what to do with an evaluated model.

    Args:
        evaluation: of the model.
        comparison: of the model with the baseline on the same images, if there is one.
        baseline: evaluation of that baseline, if there is one.
        num_patients_in_all: patients of all splits, 0 if unknown.
    """
    where = f"On the {fmt.plural(evaluation['num_patients'], 'patient')} of the {evaluation['split']} set"
    warnings = tuple(filter(None, (few_patients(evaluation), trivial_warning(evaluation))))
    if comparison is None:
        value, ends = evaluation["metrics"][HEADLINE]["value"], evaluation["metrics"][HEADLINE]["interval"]
        evidence = f"{where}, its macro F1 is {fmt.score(value)}{_interval(evaluation, ends)}."
        return Decision(COMPARE, evidence, warnings=warnings)
    entry = comparison["metrics"][HEADLINE]
    if entry["difference"] is None or entry["interval"] is None:
        reason = entry.get("interval_reason") or "undefined"
        evidence = f"The {evaluation['split']} set is too small, or too uniform, to compare the two models ({reason})."
        return Decision("Keep the baseline; more patients are needed", evidence, warnings=warnings)
    if all((content or {}).get("unseen") for content in (evaluation, baseline)):
        where += ", whom neither model has seen"
    evidence = (
        f"{where}, the new model's macro F1 is {fmt.score(entry['model'])}, the baseline's "
        f"{fmt.score(entry['baseline'])}: a difference of {fmt.signed(entry['difference'])}"
        f"{_interval(evaluation, entry['interval'], fmt.signed)}."
    )
    is_good = entry["outcome"] == "better"
    action, advice = _advise(entry, evaluation, comparison, num_patients_in_all)
    name, preferred, other = ("new model", evaluation, baseline) if is_good else ("baseline", baseline, evaluation)
    if beaten := lost_to_trivial(preferred, tuple(INDISPENSABLE)):
        warnings += () if is_good or baseline is None else (trivial_warning(baseline, "The baseline"),)
        measures = fmt.listed([INDISPENSABLE[metric] for metric in beaten])
        whom = "" if lost_to_trivial(other, tuple(beaten)) == beaten else f" as the {name}"
        action = f"Use neither model: answering the same for every film does as well{whom} in {measures}"
        return Decision(action, evidence, warnings=warnings)
    return Decision(action, evidence, (advice,) if advice else (), warnings)


def _advise(entry: Json, evaluation: Json, comparison: Json, num_patients_in_all: int) -> tuple[str, str]:
    if not any(found["difference"] for found in comparison["metrics"].values()):
        return "Keep the baseline", "Both models make the same predictions: the search found nothing better."
    if entry["outcome"] == "better":
        if evaluation["num_patients"] >= MIN_PATIENTS:
            return "Use the new model", "It is better than the baseline by more than chance explains."
        return f"Confirm the new model on more patients first: at least {MIN_PATIENTS}", ""
    if entry["outcome"] == "worse" or entry["difference"] <= 0:
        certain = "The new model is worse than it by more than chance explains."
        uncertain = "The new model is not better on these patients; the difference may be chance."
        return "Keep the baseline", certain if entry["outcome"] == "worse" else uncertain
    num_patients, confidence = evaluation["num_patients"], evaluation["bootstrap"]["confidence"]
    needed = patients_needed(entry["difference"], entry["interval"][0], num_patients, confidence)
    needed = max(needed, MIN_PATIENTS)  # fewer would not be enough to use the new model
    if needed > MAX_TIMES_PATIENTS * num_patients:
        more = f"{MAX_TIMES_PATIENTS} times as many test patients"
        return "Keep the baseline", f"The difference may be chance; detecting one this small takes over {more}."
    in_all = round_up(needed * num_patients_in_all / num_patients) if num_patients_in_all else 0
    split = f" ({fmt.count(in_all)} in all, split as now)" if in_all else ""
    action = f"Keep the baseline; more patients are needed: about {fmt.count(needed)} in the test set{split}"
    advice = (
        f"The difference may be chance. If it is real, that many patients show it with {POWER:.0%} probability: "
        "intervals shrink with the square root of the number of patients."
    )
    return action, advice


def patients_needed(difference: float, low: float, num_patients: int, confidence: float) -> int:
    """Return how many patients it takes to show a positive difference of this size with a probability of `POWER`.

    It was seen on `num_patients` patients, and `low` is the lower end of its interval. That end is z standard errors
    below the difference, and the standard error shrinks with the square root of the number of patients; to exclude zero
    with that probability, the difference must be z + z(POWER) of them. The number is rounded up to two digits.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    standard_errors = difference * z / (difference - low)
    return round_up(num_patients * ((z + NormalDist().inv_cdf(POWER)) / standard_errors) ** 2)


def round_up(number: float) -> int:
    """Round up to two significant digits."""
    unit = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / unit) * unit


def few_patients(evaluation: Json) -> str:
    """Return a warning if there are too few test patients for reliable intervals, else an empty text."""
    num_patients = evaluation["num_patients"]
    if num_patients >= MIN_PATIENTS:
        return ""
    return (
        f"With only {fmt.plural(num_patients, 'test patient')}, the intervals are too narrow: any difference is a hint "
        "that needs more patients to confirm it."
    )


def trivial_warning(evaluation: Json, name: str = "The model") -> str:
    """Return where the model does not, or not clearly, beat the best trivial predictor; an empty text if nowhere."""
    entries = {metric: strongest_trivial(evaluation, metric) for metric in AGAINST_TRIVIAL}
    named = {
        metric: f"{METRIC_NAMES[metric]} {fmt.score(found[1]['model'])}, {found[0]} {fmt.score(found[1]['baseline'])}"
        for metric, found in entries.items()
        if found and found[1]["outcome"] != "better"
    }
    beaten = lost_to_trivial(evaluation, tuple(named))
    unclear = [text for metric, text in named.items() if metric not in beaten]
    sentences = {
        f"{name} does not beat answering the same for every film": [named[metric] for metric in beaten],
        f"{name} is not clearly better than answering the same for every film": unclear,
    }
    return " ".join(f"{start}: {'; '.join(texts)}." for start, texts in sentences.items() if texts)


def lost_to_trivial(evaluation: Json | None, names: tuple[str, ...]) -> list[str]:
    """Return the metrics in which the best trivial predictor does at least as well as the model."""
    found = {name: strongest_trivial(evaluation or {}, name) for name in names}
    return [name for name, entry in found.items() if entry and _gain(name, entry[1]) <= 0]


def strongest_trivial(evaluation: Json, name: str) -> tuple[str, Json] | None:
    """Return the better of the trivial predictors in a metric and the model's difference from it; None if undefined."""
    known = [(entry["name"], entry["metrics"][name]) for entry in evaluation.get("trivial", {}).values()]
    defined = [(who, entry) for who, entry in known if entry["difference"] is not None]
    return min(defined, key=lambda pair: _gain(name, pair[1]), default=None)


def _gain(name: str, entry: Json) -> float:
    return float(-entry["difference"] if name in LOWER_IS_BETTER else entry["difference"])


def _interval(evaluation: Json, ends: list[float] | None, write: Callable[[float], str] = fmt.score) -> str:
    if ends is None:
        return ""
    return f" ({fmt.percent(evaluation['bootstrap']['confidence'])} interval {fmt.interval(ends[0], ends[1], write)})"
