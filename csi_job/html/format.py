"""How the report and the terminal write names, numbers, times and lists."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from csi_job.trial.hyperparameters import HYPERPARAMETERS

DASH = "\N{EN DASH}"  # between the ends of a range
MISSING = DASH  # for a value that is not there
MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def parameter_name(name: str) -> str:
    """Return the label of a hyperparameter, e.g. `Learning rate`; one from another version gets its own name."""
    return HYPERPARAMETERS[name].label if name in HYPERPARAMETERS else name.replace("_", " ").capitalize()


def in_order(names: set[str]) -> list[str]:
    """Return hyperparameters in the order in which they are declared, unknown ones last."""
    known = list(HYPERPARAMETERS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def parameters(params: dict[str, Any]) -> str:
    """Return hyperparameters on one line, e.g. `optimizer adam, batch_size 16`."""
    return ", ".join(f"{name} {value(params[name])}" for name in in_order(set(params)))


def value(parameter: Any) -> str:
    """Return the value of a hyperparameter, fractions with three significant digits."""
    if parameter is None:
        return MISSING
    return f"{parameter:.3g}" if isinstance(parameter, float) else str(parameter)


def score(number: float | None) -> str:
    """Return an F1 or another share with three decimals."""
    return MISSING if number is None else f"{number:.3f}".replace("-", MINUS)


def signed(difference: float) -> str:
    """Return a difference with its sign."""
    return f"{difference:+.3f}".replace("-", MINUS)


def percent(share: float) -> str:
    """Return a level of confidence or another chosen share with all its digits, e.g. `95%`, `99.5%`."""
    return f"{100 * share:.10g}%"


def with_error(number: float | None, error: float | None) -> str:
    """Return a value with its standard error, if there is one."""
    return score(number) if error is None else f"{score(number)} ± {score(error)}"


def interval(low: float | None, high: float | None, write: Callable[[float], str] = score) -> str:
    """Return an interval, e.g. `0.512 to 0.634`; empty if there is none."""
    return "" if low is None or high is None else f"{write(low)} to {write(high)}"


def with_interval(
    number: float | None, low: float | None, high: float | None, write: Callable[[float], str] = score
) -> str:
    """Return a value with its interval in parentheses."""
    ends = interval(low, high, write)
    text = MISSING if number is None else write(number)
    return f"{text} ({ends})" if ends else text


def count(number: int | None) -> str:
    """Return a count with thin spaces between thousands."""
    return MISSING if number is None else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plural(number: int, noun: str) -> str:
    """Return a count with its noun, e.g. `1 trial`, `3 trials`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def millions(number: int | None) -> str:
    """Return a count in millions."""
    return MISSING if number is None else f"{number / 1e6:.1f}"


def tick(number: float) -> str:
    """Return the label of a tick: powers of ten as such, other fractions with two significant digits."""
    if isinstance(number, int):
        return str(number)
    power = math.log10(number) if number > 0 else 0.5
    if abs(power - round(power)) < 1e-9 and not -3 < power < 4:  # noqa: PLR2004 - 0.01 to 1000 are read at a glance
        return f"10{str(round(power)).translate(SUPERSCRIPTS)}"
    return f"{number:.2g}"


def duration(seconds: float | None) -> str:
    """Return a duration in the unit a person would choose, e.g. `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds is None:
        return MISSING
    for limit, size, unit, decimals in ((90, 1, "s", 0), (90 * 60, 60, "min", 0), (48 * 3600, 3600, "h", 1)):
        if seconds < limit:
            return f"{seconds / size:.{decimals}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def sentence(text: str) -> str:
    """Return a text with a capital letter and a period; a first word with an underscore keeps its spelling."""
    first = text.split(" ", 1)[0]
    return f"{text[:1] if '_' in first else text[:1].upper()}{text[1:].rstrip('.')}."


def listed(items: Sequence[str]) -> str:
    """Join items as in a sentence, e.g. `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
