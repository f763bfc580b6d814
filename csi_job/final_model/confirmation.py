"""The trainings that choose the winner, shared by all processes that work on a study.

Each is a claim like a trial's: the workers of the search take them when the trials are done (`hyperopt --confirm`), and
so does every `train-optimized`. Their results are files (`SeedTrainer`), from which the winner is then chosen.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from csi_job.errors import CsiJobError
from csi_job.final_model.candidates import Candidate, CandidateResult, best_mean, cannot_win, choose_winner
from csi_job.final_model.seeds import Recipe, SeedResult, SeedTrainer
from csi_job.storage.attributes import REASON
from csi_job.storage.claim import count_trials
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.storage import storage_of
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.confirmation import Progress, Training, latest, open_confirmation, plan, training_of
from csi_job.study.objective import train_trial
from csi_job.study.settings import StudySettings
from csi_job.study.trial_run import RunningTrial
from csi_job.study.worker import WorkerOptions, WorkerSummary, run_worker
from csi_job.trial.hyperparameters import Hyperparameters

RESULT: Final = "result"  # attribute of a finished training: its `SeedResult`


@dataclass(frozen=True)
class Confirmation:
    """What decides the winner, and the baseline that it is compared with."""

    candidates: Sequence[Candidate]
    baseline: Hyperparameters
    seeds: Sequence[int]
    trainer: SeedTrainer
    prefer_cheap: bool = False

    def trainings(self, trials: Sequence[FrozenTrial]) -> list[Training]:
        """Return the trainings that matter, given those so far; the first are to be done first.

        The best candidate of the search is first, since others are dropped by a candidate that is done, and then the
        baseline, which is needed whoever wins. A candidate that cannot be trained, or cannot win, is left out.
        """
        reasons = infeasible(trials)
        complete = {key: trial for key, trial in latest(trials).items() if trial.state is TrialState.COMPLETE}
        found = {key: SeedResult.of(trial.user_attrs[RESULT]) for key, trial in complete.items()}
        results = []
        for candidate in self.candidates:
            digest = self.trainer.recipe_digest(candidate.recipe)
            if digest not in reasons:
                seeds = (found.get((digest, seed)) for seed in self.seeds)
                results.append(CandidateResult(candidate, tuple(result for result in seeds if result is not None)))
        leader = None if self.prefer_cheap else best_mean(results, len(self.seeds))
        rivals = [result for result in results if not cannot_win(result, len(self.seeds), leader)]
        first, *others = [[*self._of(result.candidate)] for result in rivals] or [[]]
        by_seed = itertools.chain.from_iterable(zip(*others, strict=True))
        if rivals and all(len(result.seeds) == len(self.seeds) for result in rivals):
            rivals = [choose_winner(rivals, prefer_cheap=self.prefer_cheap)]
        max_epochs = {result.candidate.recipe.max_epochs for result in rivals}
        baseline: Iterable[Training] = ()
        if len(max_epochs) == 1:  # else it is not certain yet how many the winner may have
            baseline = self._of(Candidate(Recipe(self.baseline, *max_epochs)), "baseline")
        wanted = (*first, *baseline, *by_seed)
        return [training for training in wanted if training.digest not in reasons]

    def _of(self, candidate: Candidate, name: str = "") -> Iterator[Training]:
        recipe, digest = candidate.recipe, self.trainer.recipe_digest(candidate.recipe)
        name = name or ("as given" if candidate.trial is None else f"trial {candidate.trial}")
        for seed in self.seeds:
            yield Training(digest, seed, asdict(recipe.params), recipe.max_epochs, name)

    def objective(self, running: RunningTrial[Training]) -> list[float]:
        """Train, unless the result is there; keep the weights only while the lease is held."""
        training, trainer = running.params, self.trainer
        recipe = Recipe(Hyperparameters(**training.params), training.max_epochs)
        if trainer.recipe_digest(recipe) != training.digest:
            message = "this training was planned for other data or settings, or by another version of csi-job"
            raise CsiJobError(message)
        result = trainer.finished(recipe, training.seed)
        if result is None:
            trainer.prepare(recipe)
            cache, settings = trainer.cache, trainer.settings
            trained = train_trial(running, recipe.params, training.seed, cache.train, cache.validation, settings)
            running.storage.write_trial(running.lease, TrialWrite())  # fails if another worker has it
            result = trainer.keep(recipe, training.seed, trained)
        running.attributes[RESULT] = asdict(result)
        return [result.val_f1]


def infeasible(trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """Return why recipes, by their digest, could not be trained; one seed is enough."""
    pruned = (trial for trial in latest(trials).values() if trial.state is TrialState.PRUNED)
    return {training_of(trial).digest: str(trial.user_attrs.get(REASON, "")) for trial in pruned}


def confirm(
    study: optuna.Study,
    confirmation: Confirmation,
    settings: StudySettings,
    work: Path,
    options: WorkerOptions,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> optuna.Study:
    """Do the trainings that are missing, together with every process that does; return the study that holds them.

    With `options.waits` it returns when all are done, else when the rest runs elsewhere.
    """
    beside, storage = open_confirmation(study), storage_of(study)

    def replan() -> Progress:
        counts = storage.read(lambda connection: count_trials(connection, study_id_of(study)))
        progress = plan(beside, confirmation.trainings, counts.num_finished)
        on_progress(progress)
        return progress

    def on_trial_finished(_: WorkerSummary) -> None:
        replan()

    own = replace(options, on_trial_finished=on_trial_finished, may_add=False, noun="training")
    update = {"pruner": "none", "sampler": "random", "objective": "f1", "max_epochs_total": None}
    while replan().num_open:
        run_worker(
            beside,
            confirmation.objective,
            suggest=training_of,
            settings=settings.model_copy(update=update),
            work=work,
            options=own,
        )
        if not options.waits:
            break
    return beside
