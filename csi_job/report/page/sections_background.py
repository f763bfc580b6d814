"""The sections in the background: the data, how to reproduce the study, the glossary."""

import platform
from importlib.metadata import version
from pathlib import Path

from csi_job.cache.manifest import CacheInfo
from csi_job.html import format as fmt
from csi_job.html.blocks import Block, Code, Definitions, Figure, PageSection
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI
from csi_job.report.figures.scores import scores_plot
from csi_job.report.settings_file import commands, not_repeated, settings_yaml
from csi_job.report.study_view import StudyView
from csi_job.storage.attributes import SEED
from csi_job.work_folder import WorkFolder

PURPOSES = {"train": "training", "validation": "validation", "test": "testing"}
PACKAGES = ("csi-job", "optuna", "torch", "torchvision", "numpy", "scikit-learn")
GLOSSARY = {
    "AUROC": "How well the model ranks images of one risk class above all others: 0.5 is chance, 1 is perfect.",
    "Baseline": "The standard settings, fixed before the search and tried first, as trial 0.",
    "Candidate": "One of the best trials, retrained with several seeds to check that its result holds up.",
    "Confidence interval": "The range that plausibly contains the true value, estimated by resampling the patients "
    "(bootstrap).",
    "CSI": "Congestion Score Index: each of six lung zones is scored from 0 (no congestion) to 3 (severe); the CSI is "
    f"the mean over the graded zones. Up to {LOW_RISK_MAX_CSI} means low, up to {MEDIUM_RISK_MAX_CSI} medium, and "
    "above that high risk of acute heart failure.",
    "Epoch": "One pass through all training images.",
    "F1": "Agreement between the predicted and true scores of a zone, from 0 to 1. Every score counts equally, however "
    "rare it is (macro F1), unless the study weights scores by how often they occur; zones are averaged, and ungraded "
    "zones are excluded.",
    "GFLOPs": "Billions of arithmetic operations needed to process one image: the model's computational cost.",
    "Importance": "How much of the difference between the best trials and the rest one hyperparameter explains.",
    "Infeasible": "A trial that could not be trained because memory ran out or the loss diverged.",
    "MAE": "Mean absolute error: how far off a predicted score of a zone, or a predicted CSI, is on average.",
    "Pareto front": "The trials that no other trial beats on both F1 and cost.",
    "Pearson r": "Correlation of the predicted with the true CSI: 0 is none, 1 is perfect.",
    "Pruned": "A trial stopped early because it was doing worse than others at the same epoch.",
    "RMSE": "Root mean squared error: like the MAE, but large errors weigh more.",
    "SD": "Standard deviation: how much results vary from one seed to the next.",
    "Seed": "The number that fixes every random choice in a training run.",
    "Trial": "One training run with one set of hyperparameters.",
    "Unknown weight": "How much ungraded zones count in training relative to graded ones.",
    "Validation": "Patients set aside for choosing settings. Test patients are not used for training or model "
    "selection.",
}


def data(info: CacheInfo | None) -> PageSection:
    """Show how many images of each score are in each split, and the warnings of the cache."""
    key, title = "data", "The data"
    if info is None:
        sentence = "The image cache of this study is not in this work folder, so the data cannot be described."
        return PageSection(key, title, (sentence,))
    images = fmt.plural(sum(info.num_images.values()), "radiograph")
    parts = [f"{fmt.count(info.num_images[split])} for {purpose}" for split, purpose in PURPOSES.items()]
    sentence = (
        f"{images} from {fmt.plural(info.num_patients, 'patient')}: {fmt.listed(parts)}. All images of a patient are "
        "in the same split, as far as the label table identifies patients."
    )
    if info.num_corrupt:
        sentence += f" Excluded because they could not be read: {fmt.plural(info.num_corrupt, 'file')}."
    warnings = tuple(map(fmt.sentence, info.warnings))
    return PageSection(key, title, (sentence,), (Figure(scores_plot(info)),), warnings)


def reproduce(view: StudyView, info: CacheInfo | None) -> PageSection:
    """Show the commands, settings, seeds and versions that lead to this study again."""
    file = WorkFolder(Path()).study_settings(view.name).name
    blocks: list[Block] = [Code("\n".join(commands(view, file)), "The same search, phase by phase, in a new folder:")]
    if view.fingerprint:
        blocks.append(Code(settings_yaml(view, info), f"The settings file {file}, which is beside this page:"))
    items = [("Study seed", str(view.attributes.get(SEED, fmt.MISSING)))]
    if info is not None:
        shares = " / ".join(map(fmt.percent, info.split_shares))
        items += [
            ("Split", f"by patient, {shares} for {fmt.listed(SPLITS)}, seed {info.split_seed}"),
            ("Images", f"{info.image_size_px} × {info.image_size_px} px, normalisation {info.normalisation}"),  # noqa: RUF001
            ("Cache", info.key),
        ]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    items.append(("Software versions", f"Python {platform.python_version()}, {versions}"))
    blocks.append(Definitions(tuple(items)))
    paragraph = (
        "One worker on a CPU reproduces a study exactly. With several workers or a GPU the trials differ, because the "
        "search learns from whatever has finished by then and GPUs do not add numbers in a fixed order."
    )
    paragraphs = tuple(filter(None, (paragraph, not_repeated(view))))
    return PageSection("reproduce", "How to reproduce this study", paragraphs, tuple(blocks))


def glossary() -> PageSection:
    """Explain the terms of the page."""
    return PageSection("glossary", "Glossary", blocks=(Definitions(tuple(GLOSSARY.items())),))
