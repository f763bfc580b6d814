"""The settings file beside the report: with it, one worker on a CPU repeats the study bit by bit."""

import shlex
from pathlib import Path
from typing import Any

from csi_job.cache.manifest import CacheInfo
from csi_job.files import write_file
from csi_job.html import format as fmt
from csi_job.report.study_view import Phase, StudyView
from csi_job.storage.attributes import BASELINE, FINISHED, FIXED_PARAMS, MIGRATED_FROM, MIN_RESOURCE, REDUCTION_FACTOR
from csi_job.study.record import StudyRecord
from csi_job.yaml_file import yaml_line


def write_settings(view: StudyView, info: CacheInfo | None, path: Path) -> Path | None:
    """Write the settings of a study's first phase; None for a study of another program."""
    if not view.fingerprint:
        return None
    lines = [f"# Settings of study {view.name}. To repeat it, in a new work folder:"]
    lines += [f"#   {line}" for command in commands(view, path.name) for line in command.splitlines()]
    lines += [f"# {not_repeated(view)}"] if not_repeated(view) else []
    return write_file(path, "\n".join([*lines, settings_yaml(view, info), ""]))


def commands(view: StudyView, file: str) -> list[str]:
    """Return one command per phase, which ends at the total of trials that the phase ended at."""
    words = ["csi-job", "hyperopt", "--config", file]
    shared = f"{shlex.join(words)} --labels TABLE --images FOLDER --work NEW"
    if _weights(view):
        shared += " \\\n    --pretrained WEIGHTS"
    found = [shared]
    for phase in view.phases[1:]:
        given = {name: value for name, value in phase.options.items() if value is not None}
        rungs = {name: given.pop(name) for name in (MIN_RESOURCE, REDUCTION_FACTOR) if name in given}  # have no flag
        variables = "".join(f"CSI_JOB_STUDY__{name.upper()}={value} " for name, value in rungs.items())
        options = {"num_trials": _total(view, phase), **given}
        flags = (f"--{name.replace('num', 'n').replace('_', '-')} {value}" for name, value in options.items())
        found.append(f"{variables}{shared} \\\n    {' '.join(flags)}")
    return found


def not_repeated(view: StudyView) -> str:
    """Return a sentence about the trials that came from elsewhere; empty if there are none."""
    others = [trial for trial in view.frozen_trials if not trial.user_attrs.get(BASELINE)]
    added = {
        "enqueued by hand": [trial for trial in others if FIXED_PARAMS in trial.system_attrs],
        "migrated from another study": [trial for trial in others if MIGRATED_FROM in trial.user_attrs],
    }
    parts = [f"{fmt.plural(len(trials), 'trial')} {how}" for how, trials in added.items() if trials]
    return f"The commands do not repeat {fmt.listed(parts)}." if parts else ""


def settings_yaml(view: StudyView, info: CacheInfo | None) -> str:
    """Return the settings of a study's first phase as YAML; earlier versions stored only some of them."""
    baseline = next((trial.params for trial in view.trials if trial.is_baseline), {})
    phase: dict[str, Any] = {}
    for first in view.phases[:1]:
        options = {name: value for name, value in first.options.items() if value is not None}
        phase = {"num_trials": max(1, _total(view, first)), **options}
    tree = StudyRecord(view.name, view.attributes, baseline, phase).settings()
    if info is not None:
        train, validation, test = info.split_shares
        split = {"train": train, "validation": validation, "test": test, "seed": info.split_seed}
        size = {"image_size_px": info.image_size_px, "normalisation": info.normalisation}
        tree = {"radiographs": {"split": split}, "cache": size} | tree
    tree.pop("tracking", None)
    lines = []
    for section, content in tree.items():
        lines += [f"{section}:", *(f"  {key}: {yaml_line(value)}" for key, value in content.items())] if content else []
    if weights := _weights(view):
        lines.append(f"# trial.pretrained was a file of weights with the SHA-256 {weights}.")
    return "\n".join(lines)


def _total(view: StudyView, phase: Phase) -> int:
    """Return the number of finished trials at the end of a phase."""
    last = max(trial.number for trial in view.trials if trial.phase is phase)
    return sum(trial.number <= last for trial in view.with_outcome(*FINISHED))


def _weights(view: StudyView) -> str | None:
    """Return the digest of the file of initial weights, if there was one."""
    pretrained = view.fingerprint.get("trial", {}).get("pretrained")
    return None if pretrained in (None, "none", "imagenet") else str(pretrained)
