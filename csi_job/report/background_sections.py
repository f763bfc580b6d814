"""The parts of the page that stay in the background: the data, how to reproduce the result, the words."""

from __future__ import annotations

import json
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from csi_job.radiographs.split import SPLITS
from csi_job.radiographs.zones import SCORES, ZONES
from csi_job.report import words
from csi_job.report.blocks import Block, Code, Definitions, Figure, Section
from csi_job.report.style import GREY, Plot, layout
from csi_job.study.attributes import FINGERPRINT, OBJECTIVE, SEED

if TYPE_CHECKING:
    from csi_job.cache.store import CacheInfo
    from csi_job.report.view import StudyView

SCORE_COLOURS = ("#b9d5ec", "#7fb2dd", "#3b82c4", "#20527f", GREY)  # scores 0 to 3, then unknown
PACKAGES = ("csi-job", "optuna", "torch", "torchvision", "numpy", "scikit-learn")


def data(info: CacheInfo | None) -> Section:
    """Show how many images there are of each score in each split, and what the cache warned of."""
    if info is None:
        sentence = "The cache that this study was searched on is not in this work folder, so the data is not described."
        return Section("data", "The data", (sentence,))
    total = sum(info.num_images.values())
    parts = [f"{words.plural(info.num_images[split], 'image')} for {split}" for split in SPLITS]
    sentence = (
        f"{words.plural(total, 'radiograph')} of {words.plural(info.num_patients, 'patient')}: {words.listed(parts)}. "
        "No patient is in two of them."
    )
    if info.num_corrupt:
        sentence += f" {words.plural(info.num_corrupt, 'file')} could not be read and were left out."
    warnings = tuple(warning.rstrip(".") + "." for warning in info.warnings)
    return Section("data", "The data", (sentence,), (Figure(_scores_plot(info)),), cautions=warnings)


def reproduce(view: StudyView, info: CacheInfo | None) -> Section:
    """Show the commands, seeds, versions and the fingerprint that lead to this study again."""
    fingerprint = view.attributes.get(FINGERPRINT)
    blocks: list[Block] = [
        Code("\n".join(_commands(view, info)), "The same search, phase by phase, in a folder of its own:"),
        Definitions(tuple(_origins(view, info))),
        Code(
            json.dumps(fingerprint, indent=1, ensure_ascii=False), "Fingerprint: what all workers of the study share."
        ),
    ]
    paragraph = (
        "One worker on a CPU repeats a study exactly. Several workers or a GPU give other trials, since the search "
        "learns from whatever has finished by then, and GPUs add up numbers in changing order."
    )
    return Section("reproduce", "How to reproduce it", (paragraph,), tuple(blocks))


def glossary() -> Section:
    """Show what the words of the page mean."""
    return Section("glossary", "Words used here", blocks=(Definitions(words.GLOSSARY),))


def _scores_plot(info: CacheInfo) -> Plot:
    caption = (
        "How many images have each score in each zone; darker is more congested. The scores that are rare in a split "
        "are the ones its F1 is least sure of."
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
    return Plot("scores", "Scores by zone and split", caption, {"data": traces, "layout": result})


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
    shared = ["--labels TABLE", "--images FOLDER", f"--study-name {shlex.quote(view.name)}"]
    shared += [f"--seed {view.attributes[SEED]}"] if SEED in view.attributes else []
    shared += [f"--objective {objective}"] if objective != "f1" else []
    shared += [f"--image-size {info.image_size_px} --split-seed {info.split_seed}"] if info else []
    lines = []
    for phase in view.phases:
        last = max(trial.number for trial in view.trials if trial.phase is phase)
        finished = [trial for trial in view.trials if trial.outcome in ("complete", "pruned", "infeasible")]
        total = sum(trial.number <= last for trial in finished)
        own = (
            [f"--n-trials {total}", f"--max-epochs {phase.max_epochs}"] if phase.max_epochs else [f"--n-trials {total}"]
        )
        own += [f"--sampler {phase.sampler}", f"--pruner {phase.pruner}"]
        lines.append(" \\\n    ".join(["csi-job hyperopt", " ".join(shared), " ".join(own)]))
    return lines or ["csi-job hyperopt " + " ".join(shared)]


def _origins(view: StudyView, info: CacheInfo | None) -> list[tuple[str, str]]:
    items = [("Seed of the study", str(view.attributes.get(SEED, words.MISSING)))]
    if info is not None:
        shares = " / ".join(f"{share:.0%}" for share in info.split_shares)
        items += [
            ("Split", f"by patient, {shares} for {words.listed(list(SPLITS))}, seed {info.split_seed}"),
            ("Images", f"{info.image_size_px} × {info.image_size_px} px, normalisation {info.normalisation}"),  # noqa: RUF001
            ("Cache", info.key),
        ]
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return [*items, ("Versions that made this page", f"Python {platform.python_version()}, {versions}")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return words.MISSING
