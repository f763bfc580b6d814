"""The parts of the page that stay in the background: the data, how to reproduce the result, the words."""

from __future__ import annotations

import math
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import yaml

from csi_job.html.plot import GREY, Plot, layout
from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import SCORES, ZONES
from csi_job.report import format as words
from csi_job.report.page.blocks import Block, Code, Definitions, Figure, Section
from csi_job.storage.attributes import FINISHED, OBJECTIVE, SEED

if TYPE_CHECKING:
    from csi_job.cache.manifest import CacheInfo
    from csi_job.report.study_view import Phase, StudyView, TrialView

SCORE_COLOURS = ("#b9d5ec", "#7fb2dd", "#3b82c4", "#285f94", GREY)  # scores 0 to 3, then unknown
PURPOSES = {"train": "training", "validation": "validation", "test": "testing"}
PACKAGES = ("csi-job", "optuna", "torch", "torchvision", "numpy", "scikit-learn")


def data(info: CacheInfo | None) -> Section:
    """Show how many images there are of each score in each split, and what the cache warned of."""
    if info is None:
        sentence = "The image cache of this study is not in this work folder, so the data cannot be described."
        return Section("data", "The data", (sentence,))
    total = sum(info.num_images.values())
    parts = [f"{words.count(info.num_images[split])} for {purpose}" for split, purpose in PURPOSES.items()]
    sentence = (
        f"{words.plural(total, 'radiograph')} from {words.plural(info.num_patients, 'patient')}: "
        f"{words.listed(parts)}. All images of a patient are in the same split, as far as the label table identifies "
        "patients."
    )
    if info.num_corrupt:
        sentence += f" Excluded because they could not be read: {words.plural(info.num_corrupt, 'file')}."
    warnings = tuple(words.sentence(warning) for warning in info.warnings)
    return Section("data", "The data", (sentence,), (Figure(_scores_plot(info)),), cautions=warnings)


def reproduce(view: StudyView, info: CacheInfo | None) -> Section:
    """Show the commands, seeds, versions and the fingerprint that lead to this study again."""
    commands = Code("\n".join(_commands(view, info)), "The same search, phase by phase, in a new folder:")
    blocks: list[Block] = [commands]
    if view.fingerprint:
        blocks.append(Code(_settings_yaml(view.fingerprint, view.baseline), "The settings file for --config:"))
    blocks.append(Definitions(tuple(_origins(view, info))))
    paragraph = (
        "One worker on a CPU reproduces a study exactly. With several workers or a GPU the trials differ, because the "
        "search learns from whatever has finished by then and GPUs do not add numbers in a fixed order."
    )
    return Section("reproduce", "How to reproduce this study", (paragraph,), tuple(blocks))


def glossary() -> Section:
    """Show what the words of the page mean."""
    return Section("glossary", "Glossary", blocks=(Definitions(words.GLOSSARY),))


def _scores_plot(info: CacheInfo) -> Plot:
    caption = (
        "Number of images with each score, by zone; darker means more congested. F1 is least certain for scores that "
        "are rare in a split."
    )
    names = [*(f"score {score}" for score in SCORES), "not graded"]
    zones = [zone.replace("_", " ") for zone in ZONES]
    traces = []
    for place, split in enumerate(SPLITS):
        counts_ZK = info.class_counts[split]
        for index, name in enumerate(names):
            counts = [counts_K[index] for counts_K in counts_ZK]
            traces.append(_score_bars(counts, zones, name, index, place))
    result = layout("", "", height_px=330, barmode="stack", bargap=0.25)
    result["legend"].update(traceorder="normal")
    for place, split in enumerate(SPLITS):
        suffix = str(place + 1) if place else ""
        ends = [place / 3 + (0.02 if place else 0), (place + 1) / 3 - 0.02]
        title = {"text": f"{split.capitalize()} (images)", "font": {"size": 13}, "standoff": 6}
        result[f"xaxis{suffix}"] = {**result["xaxis"], "domain": ends, "anchor": f"y{suffix}", "title": title}
        hidden = {"showticklabels": not place, "autorange": "reversed", "anchor": f"x{suffix}", "showgrid": False}
        result[f"yaxis{suffix}"] = {**result["yaxis"], **hidden, "ticks": ""}
    return Plot("scores", "Scores by zone and split", caption, {"data": traces, "layout": result}, is_wide=True)


def _score_bars(counts: list[int], zones: list[str], name: str, index: int, place: int) -> dict[str, Any]:
    suffix = str(place + 1) if place else ""
    return {
        "type": "bar",
        "orientation": "h",
        "x": counts,
        "y": zones,
        "name": name,
        "legendgroup": name,
        "showlegend": not place,
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "marker": {"color": SCORE_COLOURS[index]},
        "hovertemplate": f"%{{y}}, {name}: %{{x}}<extra></extra>",
    }


def _commands(view: StudyView, info: CacheInfo | None) -> list[str]:
    """Return a command a phase, with the total of trials at its end."""
    objective = view.attributes.get(OBJECTIVE, "f1")
    names = [f"--study-name {shlex.quote(view.name)}"]
    names += [f"--seed {view.attributes[SEED]}"] if SEED in view.attributes else []
    names += [f"--objective {objective}"] if objective != "f1" else []
    names += [f"--image-size {info.image_size_px} --split-seed {info.split_seed}"] if info else []
    shared = ["csi-job hyperopt --config FILE --labels TABLE --images FOLDER", " ".join(names)]
    commands = [[*shared, _phase_flags(view, phase)] for phase in view.phases] or [shared]
    return [" \\\n    ".join(lines) for lines in commands]


def _phase_flags(view: StudyView, phase: Phase) -> str:
    last = max(trial.number for trial in view.trials if trial.phase is phase)
    total = sum(trial.number <= last for trial in view.with_outcome(*FINISHED))
    epochs = f"--max-epochs {phase.max_epochs} " if phase.max_epochs else ""
    return f"--n-trials {total} {epochs}--sampler {phase.sampler} --pruner {phase.pruner}"


def _settings_yaml(fingerprint: dict[str, Any], baseline: TrialView | None) -> str:
    """Return what made the study's fingerprint as the YAML that makes it again; a dropped parameter is null there."""
    space = {name: None if form.get("dropped") else form for name, form in fingerprint.get("space", {}).items()}
    settings: dict[str, dict[str, Any]] = {"space": space}
    settings["trial"] = {"objective_average": fingerprint.get("average", "macro")}
    if baseline is not None:
        settings["baseline"] = baseline.params
    lines = []
    for section, content in settings.items():
        lines += [f"{section}:", *(f"  {key}: {_flow(value)}" for key, value in content.items())]
    return "\n".join(lines)


def _flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _origins(view: StudyView, info: CacheInfo | None) -> list[tuple[str, str]]:
    items = [("Study seed", str(view.attributes.get(SEED, words.MISSING)))]
    if info is not None:
        shares = " / ".join(f"{share:.0%}" for share in info.split_shares)
        items += [
            ("Split", f"by patient, {shares} for {words.listed(list(SPLITS))}, seed {info.split_seed}"),
            ("Images", f"{info.image_size_px} × {info.image_size_px} px, normalisation {info.normalisation}"),  # noqa: RUF001
            ("Cache", info.key),
        ]
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return [*items, ("Software versions", f"Python {platform.python_version()}, {versions}")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return words.MISSING
