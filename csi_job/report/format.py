"""The words of the report: names of parameters and outcomes, how numbers are written, the glossary."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

from csi_job.radiographs.zones import LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI
from csi_job.trial.hyperparameters import HYPERPARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_job.storage.attributes import TrialOutcome

DASH = "\N{EN DASH}"  # between two ends of a range
MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
MISSING = DASH  # written where there is no value

# In the order in which tables and figures show them; a parameter of another version comes last.
PARAMETER_NAMES = {name: entry.label for name, entry in HYPERPARAMETERS.items()}

OUTCOME_NAMES: dict[TrialOutcome, str] = {
    "complete": "Complete",
    "pruned": "Pruned",
    "infeasible": "Infeasible",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "running": "Running",
    "waiting": "Waiting",
}

METRIC_NAMES = {
    "f1_macro": "Macro F1, mean over zones",
    "f1_weighted": "Weighted F1, mean over zones",
    "csi_mae": "CSI: mean absolute error (points)",
    "csi_rmse": "CSI: root mean squared error (points)",
    "csi_pearson_r": "CSI: correlation with the truth (Pearson r)",
    "risk_auroc": "Risk class: AUROC, mean over classes",
    "risk_accuracy": "Risk class: accuracy",
}

GLOSSARY = (
    ("AUROC", "How well the model ranks patients of one risk class above all others: 0.5 is chance, 1 is perfect."),
    ("Baseline", "The standard settings, fixed before the search and tried first, as trial 0."),
    ("Candidate", "One of the best trials, retrained with several seeds to check that its result holds up."),
    (
        "Confidence interval",
        "The range that plausibly contains the true value, estimated by resampling the patients (bootstrap).",
    ),
    (
        "CSI",
        (
            "Congestion Score Index: each of six lung zones is scored from 0 (no congestion) to 3 (severe); the CSI "
            f"is the mean over the graded zones. Up to {LOW_RISK_MAX_CSI} means low, up to {MEDIUM_RISK_MAX_CSI} "
            "medium, and above that high risk of acute heart failure."
        ),
    ),
    ("Epoch", "One pass through all training images."),
    (
        "F1",
        (
            "Agreement between the predicted and true scores of a zone, from 0 to 1. Every score counts equally, "
            "however rare it is (macro F1); zones are averaged, and ungraded zones are excluded."
        ),
    ),
    ("GFLOPs", "Billions of arithmetic operations needed to process one image: the model's computational cost."),
    ("Importance", "How much of the difference between the best trials and the rest one hyperparameter explains."),
    ("Infeasible", "A trial that could not be trained because memory ran out or the loss diverged."),
    ("MAE", "Mean absolute error: how far off a predicted CSI is on average."),
    ("Pareto front", "The trials that no other trial beats on both F1 and cost."),
    ("Pruned", "A trial stopped early because it was doing worse than others at the same epoch."),
    ("SD", "Standard deviation: how much results vary from one seed to the next."),
    ("Seed", "The number that fixes every random choice in a training run."),
    ("Trial", "One training run with one set of hyperparameters."),
    ("Unknown weight", "How much ungraded zones count in training relative to graded ones."),
    ("Validation", "Patients set aside for choosing settings. Test patients are used only once, at the very end."),
)


def parameter_name(name: str) -> str:
    """Return the name of a parameter for people, e.g. `Learning rate`."""
    return PARAMETER_NAMES.get(name, name.replace("_", " ").capitalize())


def in_order(names: set[str]) -> list[str]:
    """Return parameters in the order in which the report shows them."""
    known = list(PARAMETER_NAMES)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def score(value: float | None) -> str:
    """Write an F1 or another share with three decimals."""
    return MISSING if value is None else f"{value:.3f}".replace("-", MINUS)


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+.3f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, write: Callable[[float], str] = score) -> str:
    """Write an interval, e.g. `0.512 to 0.634`; nothing where there is none."""
    return "" if low is None or high is None else f"{write(low)} to {write(high)}"


def with_error(number: float | None, error: float | None) -> str:
    """Write a value with its standard error."""
    return score(number) if error is None else f"{score(number)} ± {score(error)}"


def with_interval(number: float | None, low: float | None, high: float | None) -> str:
    """Write a value and its interval in brackets."""
    ends = interval(low, high)
    return f"{score(number)} ({ends})" if ends else score(number)


def value(parameter: Any) -> str:
    """Write the value of a parameter: numbers with three digits, words as they are."""
    if parameter is None:
        return MISSING
    if isinstance(parameter, float):
        return f"{parameter:.3g}"
    return str(parameter)


def count(number: int | None) -> str:
    """Write a count with thin spaces between thousands."""
    return MISSING if number is None else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def number(amount: float) -> str:
    """Write the label of an axis: powers of ten as such, others with two digits."""
    if isinstance(amount, int):
        return str(amount)
    power = math.log10(amount) if amount > 0 else 0.5
    if abs(power - round(power)) < 1e-9 and not -3 < power < 4:  # noqa: PLR2004 - 0.01 to 1000 are read at a glance
        return f"10{str(round(power)).translate(SUPERSCRIPTS)}"
    return f"{amount:.2g}"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Write a count with its noun, e.g. `1 trial`, `3 trials`."""
    return f"{count(number)} {noun if number == 1 else nouns or noun + 's'}"


def duration(seconds: float | None) -> str:
    """Write a duration for people, e.g. `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds is None:
        return MISSING
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if unit == "h" else f"{amount:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def sentence(text: str) -> str:
    """Return a text with a capital and a full stop; a name with an underscore keeps its spelling."""
    first = text.split(" ", 1)[0]
    return f"{text[:1] if '_' in first else text[:1].upper()}{text[1:].rstrip('.')}."


def listed(words: list[str]) -> str:
    """Join words as in a sentence, e.g. `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def millions(number: int | None) -> str:
    """Write a count in millions."""
    return MISSING if number is None else f"{number / 1e6:.1f}"


def speed(rates: list[float]) -> str:
    """Write the median of rates."""
    return count(round(median(rates))) if rates else MISSING
