"""The settings file beside the report: with it, one worker on a CPU repeats the study bit by bit."""

import copy
import functools
import itertools
import operator
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from csi_job.cache.manifest import CacheInfo
from csi_job.config import Settings
from csi_job.files import write_file
from csi_job.html import format as fmt
from csi_job.report.study_view import StudyView, view_phase
from csi_job.settings import beyond_bounds
from csi_job.storage.attributes import (
    BASELINE,
    FINISHED,
    FIXED_PARAMS,
    MIGRATED_FROM,
    MIN_RESOURCE,
    REDUCTION_FACTOR,
    SETTINGS,
    max_epochs_total_of,
)
from csi_job.study.record import StudyRecord
from csi_job.yaml_file import yaml_line

PhaseSettings: TypeAlias = tuple[tuple[str, Any], ...]


def write_settings(view: StudyView, info: CacheInfo | None, path: Path) -> Path | None:
    """Write the settings of a study's first phase; None for a study of another program."""
    if not view.fingerprint:
        return None
    lines = [f"# Settings of study {view.name}. To repeat it, in a new work folder:"]
    lines += [f"#   {line}" for command in commands(view, path.name) for line in command.splitlines()]
    lines += [f"# {not_repeated(view)}"] if not_repeated(view) else []
    return write_file(path, "\n".join([*lines, settings_yaml(view, info), ""]))


def commands(view: StudyView, file: str) -> list[str]:
    """Return one command per run of finished trials in one phase, which ends at the total that the run ended at."""
    words = ["csi-job", "hyperopt", "--config", file]
    shared = f"{shlex.join(words)} --labels TABLE --images FOLDER --work NEW"
    if _weights(view):
        shared += " \\\n    --pretrained WEIGHTS"
    found = [shared]
    for total, given in _runs(view)[1:]:
        rungs = {name: given.pop(name) for name in (MIN_RESOURCE, REDUCTION_FACTOR) if name in given}  # have no flag
        variables = "".join(f"CSI_JOB_STUDY__{name.upper()}={value} " for name, value in rungs.items())
        options = {"num_trials": total, **given}
        flags = (f"--{name.replace('num', 'n').replace('_', '-')} {value}" for name, value in options.items())
        found.append(f"{variables}{shared} \\\n    {' '.join(flags)}")
    return found


def not_repeated(view: StudyView) -> str:
    """Return a sentence about trials from elsewhere, phases at the same time and other limits of epochs, if any."""
    others = [trial for trial in view.frozen_trials if not trial.user_attrs.get(BASELINE)]
    added = {
        "enqueued by hand": [trial for trial in others if FIXED_PARAMS in trial.system_attrs],
        "migrated from another study": [trial for trial in others if MIGRATED_FROM in trial.user_attrs],
    }
    parts = [f"{fmt.plural(len(trials), 'trial')} {how}" for how, trials in added.items() if trials]
    if _is_interleaved(view, _settings_by_number(view)):
        parts.append("the interleaving of phases that ran at the same time")
    created_with = {SETTINGS: view.attributes.get(SETTINGS)}
    first, last = max_epochs_total_of(created_with), max_epochs_total_of(view.attributes)
    if first != last:
        parts.append(f"the change of study.max_epochs_total from {first or 'no limit'} to {last or 'no limit'}")
    return f"The commands do not repeat {fmt.listed(parts)}." if parts else ""


def settings_yaml(view: StudyView, info: CacheInfo | None) -> str:
    """Return the settings of a study's first phase as YAML; earlier versions stored only some of them."""
    baseline = next((trial.params for trial in view.trials if trial.is_baseline), {})
    phase: dict[str, Any] = {}
    for total, given in _runs(view)[:1]:
        phase = {"num_trials": total, **given}
    tree = StudyRecord(view.name, view.attributes, baseline, phase).settings()
    if info is not None:
        train, validation, test = info.split_shares
        split = {"train": train, "validation": validation, "test": test, "seed": info.split_seed}
        size = {"image_size_px": info.image_size_px, "normalisation": info.normalisation}
        tree = {"radiographs": {"split": split}, "cache": size} | tree
    tree.pop("tracking", None)
    tree = copy.deepcopy(tree)
    lines = [*_moved_to_bounds(tree)]
    for section, content in tree.items():
        lines += [f"{section}:", *(f"  {key}: {yaml_line(value)}" for key, value in content.items())] if content else []
    if weights := _weights(view):
        lines.append(f"# trial.pretrained was a file of weights with the SHA-256 {weights}.")
    return "\n".join(lines)


def _moved_to_bounds(tree: Any) -> Iterator[str]:
    """Move values beyond bounds that an earlier version did not have to the bound; yield a comment on each."""
    try:
        Settings.model_validate(tree)
    except ValidationError as error:
        for (*parents, last), value, bound in beyond_bounds(error):
            functools.reduce(operator.getitem, parents, tree)[last] = bound
            yield f"# {'.'.join(map(str, (*parents, last)))} was {value}; the limit is {bound} now."


def _runs(view: StudyView) -> list[tuple[int, dict[str, Any]]]:
    """Return, for each run of finished trials in one phase, the total of trials at its end and its settings.

    Of phases that ran at the same time, each is one run.
    """
    settings = _settings_by_number(view)
    finished = [trial.number for trial in view.with_outcome(*FINISHED)]
    if _is_interleaved(view, settings):
        place = {given: place for place, given in enumerate(dict.fromkeys(settings.values()))}
        finished.sort(key=lambda number: place.get(settings.get(number, ()), -1))
    totals = {number: total for total, number in enumerate(finished, start=1)}
    groups = itertools.groupby(filter(settings.__contains__, finished), settings.__getitem__)
    runs = [(totals[[*numbers][-1]], given) for given, numbers in groups]
    runs = runs or [(1, given) for given in [*settings.values()][:1]]  # nothing is finished yet
    return [(total, {name: value for name, value in given if value is not None}) for total, given in runs]


def _settings_by_number(view: StudyView) -> dict[int, PhaseSettings]:
    """Return the settings of the phase of each trial that has started."""
    phases = {trial.number: view_phase(trial) for trial in view.frozen_trials}
    return {number: tuple(phase.options.items()) for number, phase in phases.items() if phase}


def _is_interleaved(view: StudyView, settings: Mapping[int, PhaseSettings]) -> bool:
    """Return whether a phase came back while a trial of another was running, as with two workers that differ."""
    seen: set[PhaseSettings] = set()
    started = [trial for trial in view.with_outcome(*FINISHED) if trial.number in settings and trial.runs]
    for earlier, later in itertools.pairwise(started):
        seen.add(settings[earlier.number])
        start = later.runs[0].start
        is_at_once = any(run.start <= start and (run.end is None or run.end > start) for run in earlier.runs)
        if is_at_once and settings[later.number] in seen - {settings[earlier.number]}:
            return True
    return False


def _weights(view: StudyView) -> str | None:
    """Return the digest of the file of initial weights, if there was one."""
    pretrained = view.fingerprint.get("trial", {}).get("pretrained")
    return None if pretrained in (None, "none", "imagenet") else str(pretrained)
