"""The model card for people: Markdown from the machine-readable card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csi_job.evaluation.measures import SUMMARY_METRICS, ZONE_METRICS, metric_name
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import ZONES

Rows = Sequence[Sequence[str]]


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown, with the sections of Mitchell et al. (2019)."""
    sections = (
        f"# {card['name']}\n\nFor research, not for clinical use.",
        f"## Model details\n\n{_details(card)}",
        f"## Intended use\n\n{card['intended_use']}\n\n**Out of scope.** {card['out_of_scope_use']}",
        f"## Training data\n\n{_data(card)}",
        f"## Training\n\n{_training(card)}",
        f"## Metrics on the validation set\n\n{_metrics(card['validation'])}",
        f"## Metrics on the test set\n\n{_test(card)}",
        f"## Ethical considerations\n\n{card['ethics']}",
        f"## Limits\n\n{_list(card['limits'])}",
        f"## Licence\n\n{card['licence']}",
        f"## Versions\n\n{_list(f'{name} {number}' for name, number in card['versions'].items())}",
    )
    return "\n\n".join(sections) + "\n"


def _details(card: Mapping[str, Any]) -> str:
    rows = [
        ("architecture", card["architecture"]),
        ("gives", "six lung zones, each 0, 1, 2, 3 or unknown, with probabilities"),
        ("takes", f"grey images of {card['image_size_px']} px, normalisation `{card['normalisation']}`"),
        ("parameters", f"{card['num_parameters']:,}"),
        ("cost of an image", f"{card['gflops']:.2f} GFLOPs"),
        ("study", f"{card['study']}" + ("" if card["trial"] is None else f", trial {card['trial']}")),
        ("created", card["created"]),
        *((f"SHA-256 of `{name}`", f"`{entry['sha256']}`") for name, entry in card.get("files", {}).items()),
    ]
    return _table(("", ""), rows)


def _data(card: Mapping[str, Any]) -> str:
    data = card["data"]
    rows = [(split, str(data["num_images"][split]), str(data["num_patients"][split])) for split in SPLITS]
    warnings = f"\n\n{_list(data['warnings'])}" if data["warnings"] else ""
    fingerprint = f"Fingerprint of images, labels and split: `{data['cache']}`. Patients are split, not images."
    return f"{fingerprint}\n\n{_table(('split', 'images', 'patients'), rows)}{warnings}"


def _training(card: Mapping[str, Any]) -> str:
    params = _table(("hyperparameter", "value"), [(name, _value(value)) for name, value in card["params"].items()])
    seeds = [
        (str(row["seed"]), f"{row['val_f1']:.4f}", str(row["best_epoch"] + 1), str(row["num_epochs"]))
        for row in card["seeds"]
    ]
    spread = "" if card["spread"] is None else f", standard deviation {card['spread']:.4f}"
    return (
        f"{params}\n\nTrained on the training set with early stopping on the validation set, at most "
        f"{card['max_epochs']} epochs, once a seed; the seed with the best validation F1 ({card['kept_seed']}) was "
        f"kept. Mean validation F1 over the seeds {card['mean']:.4f}{spread}.\n\n"
        f"{_table(('seed', 'validation F1', 'best epoch', 'epochs'), seeds)}\n\n"
        f"Settings: {', '.join(f'{name} {_value(value)}' for name, value in _flat(card['training']))}."
    )


def _test(card: Mapping[str, Any]) -> str:
    if card["test"] is None:
        return "Not measured yet: training never touches the test set. `csi-job eval` measures it and fills this in."
    return _metrics(card["test"])


def _metrics(part: Mapping[str, Any]) -> str:
    bootstrap = part["bootstrap"]
    lead = (
        f"{part['num_images']} images of {part['num_patients']} patients; {bootstrap['confidence']:.0%} intervals by "
        f"{bootstrap['num_resamples']} bootstrap resamples of patients."
    )
    summary = [(metric_name(name).strip(), _number(part["metrics"][name])) for name in SUMMARY_METRICS]
    zones = [
        (zone, str(entry["num_graded"]), *(_number(entry[name]) for name in ZONE_METRICS))
        for zone, entry in ((zone, part["zones"][zone]) for zone in ZONES)
    ]
    headings = ("zone", "graded", "F1", "F1 weighted", "precision", "recall", "accuracy")
    return f"{lead}\n\n{_table(('metric', 'value'), summary)}\n\n{_table(headings, zones)}"


def _number(metric: Mapping[str, Any]) -> str:
    """Return e.g. `0.412 [0.350, 0.470]`, or why there is no number."""
    if metric["value"] is None:
        return metric["reason"] or "undefined"
    interval = metric["interval"]
    bounds = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{metric['value']:.3f}{bounds}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in settings.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return pairs


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(headings: Sequence[str], rows: Rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _list(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)
