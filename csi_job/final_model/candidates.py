"""Confirm the winner: train the best trials again over several seeds and choose the best mean.

The best value among many trials is partly luck, more so the more trials there are. Fresh seeds remove that luck, and
the standard deviation over them shows how much of a difference between candidates chance explains.
"""

import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from csi_job.errors import explain_os_errors
from csi_job.files import json_text, make_folder, write_atomic
from csi_job.final_model.hyperparams import HyperparamsFile
from csi_job.final_model.seeds import Recipe, SeedResult
from csi_job.html import format as fmt
from csi_job.storage.attributes import FINGERPRINT, MAX_EPOCHS, SETTINGS, STUDY_UID, count_of
from csi_job.study.record import StudyRecord
from csi_job.study.status import pareto_front, ranked_trials
from csi_job.trial.hyperparameters import Hyperparameters

FORMAT = 1
RULE_ONE = "the only candidate, not compared with others over seeds"
RULE_MEAN = "best mean validation F1 over the seeds"
DROPPED = "dropped after {done} of {all} seeds: even an F1 of 1 with each of the others would not make it the winner"
RULE_COST = "lowest GFLOPs among those whose mean validation F1 is within one standard deviation of the best mean"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """Hyperparameters to confirm: the recipe, the trial they come from, and that trial's validation F1."""

    recipe: Recipe
    trial: int | None = None
    search_value: float | None = None


@dataclass(frozen=True)
class CandidateResult:
    """A candidate trained over the seeds; `reason` says why not over all of them, and then it has no mean."""

    candidate: Candidate
    seeds: tuple[SeedResult, ...]
    reason: str = ""

    @property
    def values(self) -> list[float]:
        """Return the validation F1 of each seed."""
        return [result.val_f1 for result in self.seeds]

    @property
    def mean(self) -> float | None:
        """Return the mean validation F1 over the seeds."""
        return statistics.fmean(self.values) if self.seeds and not self.reason else None

    @property
    def std(self) -> float | None:
        """Return the standard deviation over the seeds, None with fewer than two."""
        return statistics.stdev(self.values) if len(self.seeds) > 1 and not self.reason else None

    def highest_mean(self, num_seeds: int) -> float:
        """Return the mean over all seeds if each that is left gave an F1 of 1."""
        return statistics.fmean([*self.values, *[1.0] * (num_seeds - len(self.seeds))])

    @property
    def gflops(self) -> float | None:
        """Return the cost per image."""
        return self.seeds[0].gflops if self.seeds else None

    @property
    def best(self) -> SeedResult:
        """Return the seed with the best validation F1, the earlier one in a tie."""
        return max(self.seeds, key=lambda result: (result.val_f1, -result.seed))

    def to_json(self, *, winner: bool) -> dict[str, Any]:
        """Return the candidate's row in `<study>_optimized_params.json`."""
        return {
            "trial": self.candidate.trial,
            "search_value": self.candidate.search_value,
            "params": self.candidate.recipe.params.to_params(),
            "max_epochs": self.candidate.recipe.max_epochs,
            "mean": self.mean,
            "std": self.std,
            "gflops": self.gflops,
            "reason": self.reason,
            "winner": winner,
            "seeds": [result.to_json() for result in self.seeds],
        }


@dataclass(frozen=True)
class Winner:
    """The confirmed candidate, all candidates, the rule that chose it, and the baseline trained like it."""

    result: CandidateResult
    candidates: tuple[CandidateResult, ...]
    rule: str
    baseline: CandidateResult


def find_candidates(
    file: HyperparamsFile, study: optuna.Study | None, num_candidates: int, max_epochs: int | None
) -> list[Candidate]:
    """Return the file's hyperparameters, then those of the study's best trials, without duplicates.

    A file that was confirmed or written by hand, or whose study cannot be read (None), is the only candidate.
    `max_epochs` None means as in each trial.
    """
    found = [Candidate(Recipe(file.params, max_epochs or file.max_epochs), file.trial, file.value)]
    if study is None or not file.is_search_result or num_candidates == 1:
        return found
    ranked: Iterable[FrozenTrial] = ranked_trials(study.get_trials(deepcopy=False), study.user_attrs)
    if len(study.directions) > 1:
        ranked = pareto_front(ranked, lambda trial: (trial.values[0], trial.values[1]))
    for trial in ranked:
        params = Hyperparameters.from_params(trial.params)
        if len(found) < num_candidates and all(params != candidate.recipe.params for candidate in found):
            epochs = max_epochs or count_of(trial.user_attrs, MAX_EPOCHS) or file.max_epochs
            found.append(Candidate(Recipe(params, epochs), trial.number, trial.values[0]))
    if len(found) < num_candidates:
        logger.info(
            "%s instead of %d: no other complete trial is left to compare",
            fmt.plural(len(found), "candidate"),
            num_candidates,
        )
    return found


def choose_winner(trained: Sequence[CandidateResult], *, prefer_cheap: bool) -> CandidateResult:
    """Return the best mean; with `prefer_cheap`, the cheapest within one standard deviation of it."""
    leader = max(trained, key=lambda result: result.mean or 0.0)
    if not prefer_cheap:
        return leader
    within = (leader.mean or 0.0) - (leader.std or 0.0)
    as_good = [result for result in trained if (result.mean or 0.0) >= within]
    return min(as_good, key=lambda result: (result.gflops or 0.0, -(result.mean or 0.0)))


def write_optimized_params(
    winner: Winner, study: str, cache: str, path: Path, record: StudyRecord | None = None
) -> Path:
    """Write `<study>_optimized_params.json` atomically; `read_hyperparams` reads it too.

    It includes what the study records, so that the file is enough where the study's database is out of reach.
    """
    candidate = winner.result.candidate
    content = {
        "format": FORMAT,
        "study": study,
        STUDY_UID: record.uid if record else None,
        "trial": candidate.trial,
        "params": candidate.recipe.params.to_params(),
        "max_epochs": candidate.recipe.max_epochs,
        "value": winner.result.mean,
        "std": winner.result.std,
        "seeds": [result.seed for result in winner.result.seeds],
        "confirmed": True,
        "rule": winner.rule,
        "cache": cache,
        **({key: record.attributes.get(key) for key in (FINGERPRINT, SETTINGS)} if record else {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "candidates": [result.to_json(winner=result is winner.result) for result in winner.candidates],
    }
    with explain_os_errors("the optimized parameters cannot be written", path):
        make_folder(path.parent)
        write_atomic(path, json_text(content))
    return path
