"""The trainings that choose the winner, shared by all processes that work on a study.

Each is a claim like a trial's: the workers of the search take them when the trials are done (`hyperopt --confirm`), and
so does every `train-optimized`. Their results are files (`SeedTrainer`), from which the winner is then chosen.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from optuna.trial import FrozenTrial, TrialState

from csi_job.errors import CsiJobError, InfeasibleTrialError
from csi_job.final_model import candidates as rules
from csi_job.final_model.candidates import Candidate, CandidateResult, Winner, choose_winner
from csi_job.final_model.seeds import Recipe, SeedResult, SeedTrainer
from csi_job.storage.attributes import REASON
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.confirmation import Key, Training, latest
from csi_job.study.objective import train_trial
from csi_job.study.trial_run import RunningTrial
from csi_job.trial.hyperparameters import Hyperparameters

RESULT: Final = "result"  # attribute of a finished training: its `SeedResult`
Found = Mapping[Key, SeedResult]
Reasons = Mapping[str, str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Confirmation:
    """What decides the winner, and the baseline that it is compared with.

    `found` are the results so far by training; `reasons` say why recipes, by their digest, cannot be trained.
    """

    candidates: Sequence[Candidate]
    baseline: Hyperparameters
    seeds: Sequence[int]
    trainer: SeedTrainer
    prefer_cheap: bool = False
    """Whether the cheapest candidate about as good as the best wins, as in a study of two objectives."""

    @property
    def num_epochs(self) -> int:
        """The most epochs that all trainings may take, those of the baseline included."""
        epochs = [candidate.recipe.max_epochs for candidate in self.candidates]
        return len(self.seeds) * (sum(epochs) + max(epochs))

    def results(self, found: Found, reasons: Reasons) -> list[CandidateResult]:
        """Return what is known of each candidate; one that cannot be trained, or can no longer win, has a reason.

        An F1 is at most 1, so no winner is ever dropped. Where cost counts there is no such bound, since the standard
        deviation of a later leader may let any candidate win.
        """
        results = [self._result(candidate, found, reasons) for candidate in self.candidates]
        num_seeds, leader = len(self.seeds), 0.0
        if not self.prefer_cheap:
            leader = max((result.mean or 0.0 for result in results if len(result.seeds) == num_seeds), default=0.0)
        for index, result in enumerate(results):
            num_done = len(result.seeds)
            if not result.reason and num_done < num_seeds and result.highest_mean(num_seeds) < leader:
                results[index] = replace(result, reason=rules.DROPPED.format(done=num_done, all=num_seeds))
        return results

    def trainings(self, found: Found, reasons: Reasons) -> list[Training]:
        """Return the trainings that matter, finished ones included; the first are to be done first.

        The best candidate of the search is first, since others are dropped by a candidate that is done, and then the
        baseline, which is needed whichever candidate wins.
        """
        rivals = [result for result in self.results(found, reasons) if not result.reason]
        first, *others = [[*self._of(result.candidate)] for result in rivals] or [[]]
        by_seed = itertools.chain.from_iterable(zip(*others, strict=True))
        if rivals and all(len(result.seeds) == len(self.seeds) for result in rivals):
            rivals = [choose_winner(rivals, prefer_cheap=self.prefer_cheap)]
        max_epochs = {result.candidate.recipe.max_epochs for result in rivals}
        baseline: Iterable[Training] = ()
        if len(max_epochs) == 1:  # else it is not certain yet how many the winner may have
            baseline = self._of(Candidate(Recipe(self.baseline, *max_epochs)), "baseline")
        return [training for training in (*first, *baseline, *by_seed) if training.digest not in reasons]

    def train_here(self, known_reasons: Reasons, advance: Callable[[int], None] = lambda _: None) -> Winner:
        """Do in this process the trainings that are missing, and choose the winner.

        Args:
            known_reasons: why recipes cannot be trained; they are tried again only if this concerns all candidates.
            advance: called with numbers of epochs, `num_epochs` in total.

        Raises:
            InfeasibleTrialError: no candidate can be trained on this device.
        """
        digests = {self.trainer.recipe_digest(candidate.recipe) for candidate in self.candidates}
        reasons = {**known_reasons} if digests - known_reasons.keys() else {}
        found, num_left = {}, self.num_epochs

        def count(num_epochs: int) -> None:
            nonlocal num_left
            num_left -= num_epochs
            advance(num_epochs)

        for training in itertools.chain.from_iterable(map(self._of, self.candidates)):
            if result := self.trainer.finished(_recipe(training), training.seed):
                found[training.key] = result
                count(training.max_epochs)
        while missing := [training for training in self.trainings(found, reasons) if training.key not in found]:
            training = missing[0]
            try:
                found[training.key] = self.trainer.run(_recipe(training), training.seed, count)
            except InfeasibleTrialError as error:  # the mean of fewer seeds would not compare
                reasons[training.digest] = str(error)
                logger.warning("%s cannot be trained and is skipped: %s", training, error)
        count(num_left)  # what dropped candidates saved
        return self._winner(found, reasons)

    def _winner(self, found: Found, reasons: Reasons) -> Winner:
        results = self.results(found, reasons)
        trained = [result for result in results if not result.reason]
        if not trained:
            what = f"none of the {len(results)} candidates can be trained here: {results[0].reason}"
            raise InfeasibleTrialError(what, hint="use a device with more memory, or other hyperparameters")
        winner = choose_winner(trained, prefer_cheap=self.prefer_cheap)
        like_winner = Candidate(Recipe(self.baseline, winner.candidate.recipe.max_epochs))
        rule = rules.RULE_COST if self.prefer_cheap else rules.RULE_MEAN
        rule = rules.RULE_ONE if len(results) == 1 else rule
        return Winner(winner, tuple(results), rule, self._result(like_winner, found, reasons))

    def _result(self, candidate: Candidate, found: Found, reasons: Reasons) -> CandidateResult:
        digest = self.trainer.recipe_digest(candidate.recipe)
        results = tuple(found[digest, seed] for seed in self.seeds if (digest, seed) in found)
        if digest in reasons and len(results) < len(self.seeds):
            return CandidateResult(candidate, (), reasons[digest])
        return CandidateResult(candidate, results)

    def _of(self, candidate: Candidate, name: str = "") -> Iterator[Training]:
        recipe, digest = candidate.recipe, self.trainer.recipe_digest(candidate.recipe)
        name = name or ("as given" if candidate.trial is None else f"trial {candidate.trial}")
        for seed in self.seeds:
            yield Training(digest, seed, asdict(recipe.params), recipe.max_epochs, name)

    def objective(self, running: RunningTrial[Training]) -> list[float]:
        """Train, unless the result is there; keep the weights only while the lease is held."""
        training, trainer = running.params, self.trainer
        recipe = _recipe(training)
        if trainer.recipe_digest(recipe) != training.digest:
            raise CsiJobError("this training was planned for other data or settings, or by another version of csi-job")
        result = trainer.finished(recipe, training.seed)
        if result is None:
            trainer.prepare(recipe)
            cache, settings = trainer.cache, trainer.settings
            trained = train_trial(running, recipe.params, training.seed, cache.train, cache.validation, settings)
            running.storage.write_trial(running.lease, TrialWrite())  # fails if another worker has it
            result = trainer.keep(recipe, training.seed, trained)
        running.attributes[RESULT] = asdict(result)
        return [result.val_f1]


def results_of(trials: Iterable[FrozenTrial]) -> tuple[dict[Key, SeedResult], dict[str, str]]:
    """Return the results of finished trainings, and why recipes could not be trained; one seed is enough."""
    found, reasons = {}, {}
    for key, trial in latest(trials).items():
        if trial.state is TrialState.COMPLETE:
            found[key] = SeedResult.of(trial.user_attrs[RESULT])
        elif trial.state is TrialState.PRUNED:
            reasons[key[0]] = str(trial.user_attrs.get(REASON, ""))
    return found, reasons


def _recipe(training: Training) -> Recipe:
    return Recipe(Hyperparameters(**training.params), training.max_epochs)
