"""The model card: what a model is, what it was made from, how good it is, and what it must not be used for.

Source: M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019, whose sections are kept in their order.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from csi_job.cache.dataset import CacheInfo
from csi_job.evaluation.evaluate import Evaluation
from csi_job.final_model.candidates import CandidateResult
from csi_job.final_model.seeds import SeedTrainer
from csi_job.radiographs.zones import LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI

FORMAT = 1
VERSIONED = ("csi-job", "torch", "torchvision", "optuna", "numpy", "scikit-learn")
INTENDED_USE = (
    "Research on scoring congestion in frontal chest radiographs by the six-zone Congestion Score Index, by people "
    "who can judge a radiograph themselves, on images like those it was trained on."
)
OUT_OF_SCOPE_USE = (
    "Any clinical use: diagnosis, triage, treatment, or ruling anything out; it is no medical device and was not "
    "validated as one. Lateral or rotated films, children, other modalities, and findings other than the six scores."
)
LICENCE = (
    "The weights come from the radiographs and labels named by the data fingerprint and are bound by their licences, "
    "consents and data-use agreements; so are pretrained weights that training started from. Check both before "
    "passing the model on."
)
ETHICS = (
    "Weights can remember training images; treat the file as carefully as the radiographs. No patient, file name or "
    "image is in this card. Errors fall on patients: a missed congestion and a false alarm have different costs, and "
    "the metrics here weigh them alike."
)


@dataclass(frozen=True)
class CardContext:
    """What a card says beside the results: names, the data, and where the hyperparameters are from."""

    name: str
    study: str
    trainer: SeedTrainer
    num_patients: dict[str, int]
    warnings: tuple[str, ...]
    request: str

    @property
    def info(self) -> CacheInfo:
        """Return what is known of the data."""
        return self.trainer.info


def build_card(context: CardContext, result: CandidateResult, validation: Evaluation) -> dict[str, Any]:
    """Return the card as JSON-able data; `test` stays empty until the model is evaluated on the test set.

    Args:
        context: names and data.
        result: all seeds of the model's hyperparameters; the best of them is the model.
        validation: the kept model on the validation split.

    """
    params, kept = result.candidate.recipe.params, result.best
    return {
        "format": FORMAT,
        "name": context.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": context.study,
        "trial": result.candidate.trial,
        "architecture": params.model_arch,
        "image_size_px": context.info.image_size_px,
        "normalisation": context.info.normalisation,
        "params": params.to_params(),
        "max_epochs": result.candidate.recipe.max_epochs,
        "num_parameters": kept.num_parameters,
        "gflops": kept.gflops,
        "data": _data(context),
        "training": context.trainer.identity()["settings"],
        "seeds": [seed.to_json() for seed in result.seeds],
        "mean": result.mean,
        "spread": result.spread,
        "kept_seed": kept.seed,
        "validation": metrics_of(validation),
        "test": None,
        "intended_use": INTENDED_USE,
        "out_of_scope_use": OUT_OF_SCOPE_USE,
        "limits": _limits(context),
        "ethics": ETHICS,
        "licence": LICENCE,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        "request": context.request,
    }


def metrics_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the part of an evaluation that a card carries."""
    content = evaluation.to_json()
    kept = ("split", "cache", "num_images", "num_patients", "num_images_with_csi", "bootstrap", "metrics", "zones")
    return {name: content[name] for name in kept}


def _data(context: CardContext) -> dict[str, Any]:
    info = context.info
    return {
        "cache": info.key,
        "num_images": dict(info.num_images),
        "num_patients": dict(context.num_patients),
        "split_seed": info.split_seed,
        "split_shares": list(info.split_shares),
        "class_counts": info.class_counts,
        "warnings": [*info.warnings, *context.warnings],
    }


def _limits(context: CardContext) -> list[str]:
    num_images, num_patients = context.info.num_images["train"], context.num_patients["train"]
    return [
        (
            f"It learned from {num_images} images of {num_patients} patients; rare scores of a zone were seen rarely "
            "or never (see class_counts), and no subgroup (age, sex, device, projection, hospital) could be looked at."
        ),
        (
            "Validation figures are optimistic: the same patients chose hyperparameters, epoch and seed. Only the test "
            "set, which training never touches, tells what to expect, and only for patients like these."
        ),
        "The truth is a score by readers, and readers disagree; agreement with them is not agreement with the lungs.",
        (
            "Class 4 (unknown) means that a zone could not be graded. Such zones are learned but never scored, and a "
            "predicted unknown is no finding."
        ),
        (
            f"The risk class follows the published limits of the CSI mean, {LOW_RISK_MAX_CSI} and "
            f"{MEDIUM_RISK_MAX_CSI}; its probabilities take zones as independent given the image and are not "
            "calibrated for any clinic."
        ),
        f"Images are squeezed to grey squares of {context.info.image_size_px} px; shapes change, detail is lost.",
    ]
