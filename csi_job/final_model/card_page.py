"""The model card as a page, in the design of the report, with the sections of Mitchell et al. (2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csi_job.evaluation.tables import metrics_table, zones_table
from csi_job.html import format as fmt
from csi_job.html.blocks import Block, Definitions, PageSection, Table
from csi_job.html.links import Link
from csi_job.html.render import render
from csi_job.radiographs.split import SPLITS

NOT_TESTED = "Not measured yet: training never touches the test set. csi-job evaluate measures it and fills this in."


def card_page(card: Mapping[str, Any], settings: Mapping[str, Any], links: Sequence[Link]) -> str:
    """Return the page of a card; `settings` are those of its training by their dotted paths."""
    sections = [
        _details(card),
        PageSection("use", "Intended use", (card["intended_use"], f"Out of scope: {card['out_of_scope_use']}")),
        _metrics("test", "Metrics on the test set", card["test"]),
        _metrics("validation", "Metrics on the validation set", card["validation"]),
        _data(card["data"]),
        _training(card, settings),
        PageSection("limits", "Limits", tuple(card["limits"])),
        PageSection("ethics", "Ethics and licence", (card["ethics"], card["licence"])),
    ]
    return render("csi_job.final_model", "card.html.j2", card=card, title=card["name"], links=links, sections=sections)


def _details(card: Mapping[str, Any]) -> PageSection:
    trial = "" if card["trial"] is None else f", trial {card['trial']}"
    items = [
        ("Architecture", card["architecture"]),
        ("Output", "six lung zones, each 0, 1, 2, 3 or unknown, with probabilities"),
        ("Input", f"greyscale images of {card['image_size_px']} px, normalisation {card['normalisation']}"),
        ("Parameters", fmt.count(card["num_parameters"])),
        ("Cost per image", f"{card['gflops']:.2f} GFLOPs"),
        ("Study", f"{card['study']}{trial}"),
        ("Created", card["created"]),
        *((f"SHA-256 of {name}", entry["sha256"]) for name, entry in card.get("files", {}).items()),
        ("Versions", ", ".join(f"{name} {number}" for name, number in card["versions"].items())),
    ]
    return PageSection("details", "Model details", blocks=(Definitions(tuple(items)),))


def _metrics(key: str, title: str, part: Mapping[str, Any] | None) -> PageSection:
    if part is None:
        return PageSection(key, title, (NOT_TESTED,))
    sentence = (
        f"{fmt.plural(part['num_images'], 'image')} of {fmt.plural(part['num_patients'], 'patient')}; "
        f"{part['bootstrap']['confidence']:.0%} intervals over patients."
    )
    return PageSection(key, title, (sentence,), (metrics_table(dict(part)), zones_table(dict(part))))


def _data(data: Mapping[str, Any]) -> PageSection:
    rows = tuple((name, fmt.count(data["num_images"][name]), fmt.count(data["num_patients"][name])) for name in SPLITS)
    sentence = f"Fingerprint of images, labels and split: {data['cache']}. The split is by patient, not by image."
    warnings = tuple(map(fmt.sentence, data["warnings"]))
    table = Table(("Split", "Images", "Patients"), rows, frozenset({1, 2}))
    return PageSection("data", "Training data", (sentence,), (table,), warnings)


def _training(card: Mapping[str, Any], settings: Mapping[str, Any]) -> PageSection:
    sentence = (
        "Trained on the training set with early stopping on the validation set, for at most "
        f"{card['max_epochs']} epochs, once per seed. The seed with the best validation F1, {card['kept_seed']}, was "
        f"kept. Mean over the seeds: {fmt.with_error(card['mean'], card['std'])}."
    )
    params = tuple((name, fmt.value(value)) for name, value in card["params"].items())
    runs = tuple(
        (str(run["seed"]), fmt.score(run["val_f1"]), str(run["best_epoch"] + 1), str(run["num_epochs"]))
        for run in card["seeds"]
    )
    blocks: tuple[Block, ...] = (
        Table(("Hyperparameter", "Value"), params),
        Table(("Seed", "Validation F1", "Best epoch", "Epochs"), runs, frozenset({1, 2, 3})),
        Definitions(tuple((name, fmt.value(value)) for name, value in settings.items())),
    )
    return PageSection("training", "Training", (sentence,), blocks)
