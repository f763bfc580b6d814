"""The model card: what a model is, what it was made from, how good it is, and what it must not be used for.

Source: M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019; the sections keep their order.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from csi_job.evaluation.evaluate import Evaluation
from csi_job.evaluation.measures import SUMMARY_METRICS, ZONE_METRICS, metric_name
from csi_job.evaluation.tables import metrics_table, zones_table
from csi_job.final_model.candidates import CandidateResult
from csi_job.final_model.seeds import SeedTrainer
from csi_job.html import format as fmt
from csi_job.html.blocks import Block, Definitions, PageSection, Table
from csi_job.html.links import Link
from csi_job.html.render import render
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI, ZONES
from csi_job.storage.attributes import STUDY_UID
from csi_job.study.definition import flatten
from csi_job.trial.metrics import WEIGHTED

FORMAT = 1
NOT_TESTED = "Not measured yet: training never touches the test set. csi-job evaluate measures it and fills this in."
VERSIONED = ("csi-job", "torch", "torchvision", "optuna", "numpy", "scikit-learn")
INTENDED_USE = (
    "Research on scoring congestion in frontal chest radiographs with the six-zone Congestion Score Index, by people "
    "who can read a radiograph themselves, on images like those it was trained on."
)
OUT_OF_SCOPE_USE = (
    "Any clinical use: diagnosis, triage, treatment, or ruling anything out. It is not a medical device and was not "
    "validated as one. Lateral or rotated films, children, other modalities, and findings other than the six scores."
)
LICENCE = (
    "The weights derive from the radiographs and labels named by the data fingerprint and are bound by their licences, "
    "consents and data-use agreements; so are any pretrained weights that training started from. Check both before "
    "sharing the model."
)
ETHICS = (
    "Weights can memorise training images; protect the file as carefully as the radiographs. This card identifies no "
    "patient, file or image. Patients bear the errors: missed congestion and a false alarm have different costs, but "
    "the metrics here weight them equally."
)


@dataclass(frozen=True)
class CardContext:
    """What a card needs besides the results: names, the data, and where the hyperparameters come from."""

    name: str
    study: str
    trainer: SeedTrainer
    num_patients: dict[str, int]
    warnings: tuple[str, ...]
    request_digest: str
    study_uid: str | None = None
    max_image_side_px: int = RadiographsSettings().max_image_side_px
    no_baseline: str = ""
    """Why no baseline was trained with the model; empty if one was."""


def build_card(context: CardContext, result: CandidateResult, validation: Evaluation) -> dict[str, Any]:
    """Return the card of the best seed as JSON-able data; `test` is None until it is evaluated on the test set."""
    params, kept, info = result.candidate.recipe.params, result.best, context.trainer.cache.info
    limits = _limits(info.num_images["train"], context.num_patients["train"], info.image_size_px)
    limits += [WEIGHTED] if context.trainer.settings.objective_average == "weighted" else []
    limits += [f"There is no baseline to compare it with: {context.no_baseline}."] if context.no_baseline else []
    return {
        "format": FORMAT,
        "name": context.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": context.study,
        STUDY_UID: context.study_uid,
        "trial": result.candidate.trial,
        "architecture": params.model_arch,
        "image_size_px": info.image_size_px,
        "normalisation": info.normalisation,
        "max_image_side_px": context.max_image_side_px,
        "params": params.to_params(),
        "max_epochs": result.candidate.recipe.max_epochs,
        "num_parameters": kept.num_parameters,
        "gflops": kept.gflops,
        "data": {
            "cache": info.key,
            "num_images": dict(info.num_images),
            "num_patients": dict(context.num_patients),
            "split_seed": info.split_seed,
            "split_shares": list(info.split_shares),
            "class_counts": info.class_counts,
            "warnings": [*info.warnings, *context.warnings],
        },
        "training": context.trainer.settings.results_only(),
        "seeds": [seed.to_json() for seed in result.seeds],
        "mean": result.mean,
        "std": result.std,
        "kept_seed": kept.seed,
        "validation": card_metrics(validation),
        "test": None,
        "intended_use": INTENDED_USE,
        "out_of_scope_use": OUT_OF_SCOPE_USE,
        "limits": limits,
        "ethics": ETHICS,
        "licence": LICENCE,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        "request": context.request_digest,
        "no_baseline": context.no_baseline,
    }


def card_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Return the part of an evaluation that a card carries."""
    content = evaluation.to_json()
    kept = ("split", "cache", "num_images", "num_patients", "num_images_with_csi", "bootstrap", "metrics", "zones")

    def scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trivial predictor scores, without the model's differences from it."""
        return {name: {"baseline": entry["baseline"]} for name, entry in metrics.items()}

    trivial = {
        name: {
            **{key: entry[key] for key in ("name", "scores")},
            "metrics": scores(entry["metrics"]),
            "zones": {zone: scores(metrics) for zone, metrics in entry["zones"].items()},
        }
        for name, entry in content["trivial"].items()
    }
    return {**{name: content[name] for name in kept}, "trivial": trivial}


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown, with the sections of Mitchell et al. (2019)."""
    return render(
        "csi_job.final_model",
        "card.md.j2",
        card=card,
        settings=flatten(card["training"]).items(),
        percent=fmt.percent,
        short=lambda value: f"{value:.4g}" if isinstance(value, float) else str(value),
        metric_name=metric_name,
        summary_metrics=SUMMARY_METRICS,
        zone_metrics=ZONE_METRICS,
        zones=ZONES,
        splits=SPLITS,
    )


def card_html(card: Mapping[str, Any], links: Sequence[Link]) -> str:
    """Return the card as a page, in the design of the report."""
    data = card["data"]
    rows = tuple((name, fmt.count(data["num_images"][name]), fmt.count(data["num_patients"][name])) for name in SPLITS)
    table = Table(("Split", "Images", "Patients"), rows, frozenset({1, 2}))
    origin = f"Fingerprint of images, labels and split: {data['cache']}. The split is by patient, not by image."
    sections = [
        _details(card),
        PageSection("use", "Intended use", (card["intended_use"], f"Out of scope: {card['out_of_scope_use']}")),
        _metrics("test", "Metrics on the test set", card["test"]),
        _metrics("validation", "Metrics on the validation set", card["validation"]),
        PageSection("data", "Training data", (origin,), (table,), tuple(map(fmt.sentence, data["warnings"]))),
        _training(card),
        PageSection("limits", "Limits", tuple(card["limits"])),
        PageSection("ethics", "Ethics and licence", (card["ethics"], card["licence"])),
    ]
    return render("csi_job.final_model", "card.html.j2", card=card, title=card["name"], links=links, sections=sections)


def _limits(num_images: int, num_patients: int, image_size_px: int) -> list[str]:
    return [
        (
            f"It learned from {num_images} images of {num_patients} patients. Rare scores of a zone were seen seldom "
            "or never (see class_counts in the card's JSON), and no subgroup (age, sex, device, projection, hospital) "
            "could be examined."
        ),
        (
            "Validation figures are optimistic: the same patients chose hyperparameters, epoch and seed. Only the test "
            "set, which training never touches, shows what to expect, and only for patients like these."
        ),
        "The reference is readers' scores, and readers disagree; agreement with them is not agreement with the lungs.",
        (
            "Class 4 (unknown) means that a zone could not be graded. Such zones are learned but never scored, and a "
            "predicted unknown is not a finding."
        ),
        (
            f"The risk class follows the CSI-Predictor project's limits of the CSI mean, {LOW_RISK_MAX_CSI} and "
            f"{MEDIUM_RISK_MAX_CSI}, not clinically validated. Its probabilities treat zones as independent given the "
            "image and are not calibrated for any clinic."
        ),
        f"Images are resized to greyscale squares of {image_size_px} px, which changes shapes and loses detail.",
    ]


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
        f"{fmt.percent(part['bootstrap']['confidence'])} intervals over patients."
    )
    return PageSection(key, title, (sentence,), (metrics_table(dict(part)), zones_table(dict(part))))


def _training(card: Mapping[str, Any]) -> PageSection:
    sentence = (
        "Trained on the training set with early stopping on the validation set, for at most "
        f"{fmt.plural(card['max_epochs'], 'epoch')}, once per seed. The seed with the best validation F1, "
        f"{card['kept_seed']}, was kept. Mean over the seeds: {fmt.with_error(card['mean'], card['std'])}."
    )
    params = tuple((name, fmt.value(value)) for name, value in card["params"].items())
    runs = tuple(
        (str(run["seed"]), fmt.score(run["val_f1"]), str(run["best_epoch"] + 1), str(run["num_epochs"]))
        for run in card["seeds"]
    )
    blocks: tuple[Block, ...] = (
        Table(("Hyperparameter", "Value"), params),
        Table(("Seed", "Validation F1", "Best epoch", "Epochs"), runs, frozenset({1, 2, 3})),
        Definitions(tuple((name, fmt.value(value)) for name, value in flatten(card["training"]).items())),
    )
    return PageSection("training", "Training", (sentence,), blocks)
