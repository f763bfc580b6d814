"""The final model: the confirmed winner and the baseline, trained the same way, the best seed of each kept.

Nothing here reads the pixels of the test set.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import optuna

from csi_job.cache.dataset import Cache
from csi_job.errors import explain_os_errors
from csi_job.evaluation.evaluate import evaluate_model
from csi_job.evaluation.model_file import LoadedModel
from csi_job.evaluation.run import OTHER_DATA
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import digest_json, is_file, locked, make_folder
from csi_job.final_model.candidates import CandidateResult, find_candidates, write_optimized_params
from csi_job.final_model.card import FORMAT, CardContext, build_card
from csi_job.final_model.confirmation import Confirmation, results_of
from csi_job.final_model.export import publish, read_valid_card, remove_model, write_model
from csi_job.final_model.hyperparams import HyperparamsFile
from csi_job.final_model.seeds import SeedTrainer
from csi_job.final_model.settings import FinalModelSettings
from csi_job.html import format as fmt
from csi_job.logs import progress
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.signals import listening
from csi_job.storage.attributes import PLANNED_FOR, STUDY_UID, is_same_uid
from csi_job.storage.claim import count_trials
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.storage import storage_of
from csi_job.study.confirmation import Progress, open_confirmation, plan, training_of
from csi_job.study.record import StudyRecord
from csi_job.study.settings import StudySettings
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.memory import choose_device
from csi_job.trial.model import build_model, check_pretrained
from csi_job.trial.settings import TrialSettings
from csi_job.work_folder import ModelFolder, WorkFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalModel:
    """The kept models and their cards; `is_new` is False where everything was up to date.

    The baseline's card is None where the baseline cannot be trained on this device.
    """

    path: Path
    card: dict[str, Any]
    baseline_card: dict[str, Any] | None
    optimized_params: Path
    is_new: bool


@dataclass(frozen=True)
class FinalTraining:
    """What to train and how; the file's hyperparameters are the only candidate if its study is None."""

    work: WorkFolder
    cache: Cache
    file: HyperparamsFile
    study: optuna.Study | None
    baseline: Hyperparameters
    settings: FinalModelSettings
    trial: TrialSettings
    evaluation: EvaluationSettings
    record: StudyRecord | None = None
    """What the study records of how it was created."""
    max_image_side_px: int = RadiographsSettings().max_image_side_px
    """Of the images that the cache was built from."""
    worker: StudySettings = field(default_factory=StudySettings)
    """How often a training may fail."""
    options: WorkerOptions = field(default_factory=WorkerOptions)
    """Of a worker that shares the trainings of its study with others."""
    on_progress: Callable[[Progress], None] = lambda _: None
    """Called when one of those is finished."""

    @cached_property
    def confirmation(self) -> Confirmation:
        """What decides the winner."""
        settings = self.settings
        return Confirmation(
            find_candidates(self.file, self.study, settings.num_candidates, settings.max_epochs),
            self.baseline,
            range(settings.seed, settings.seed + settings.num_seeds),
            SeedTrainer(self.work.candidates(self.file.study), self.cache, self.trial),
            prefer_cheap=self.study is not None and len(self.study.directions) > 1,
        )

    @cached_property
    def digest(self) -> str:
        """A digest of everything that decides what is kept; the cards carry it as their `request`."""
        recipe_digest = self.confirmation.trainer.recipe_digest
        content = {
            "format": FORMAT,
            "study": self.file.study,
            "candidates": [[recipe_digest(entry.recipe), entry.trial] for entry in self.confirmation.candidates],
            "seeds": [*self.confirmation.seeds],
            "prefer_cheap": self.confirmation.prefer_cheap,
            "baseline": self.baseline.to_params(),
            "evaluation": self.evaluation.model_dump(mode="json", exclude={"batch_size"}),
        }
        return digest_json(content)[:16]

    @property
    def folder(self) -> ModelFolder:
        """The study's folder of final models."""
        return self.work.final(self.file.study)

    @property
    def params_file(self) -> Path:
        """The file of the winner's hyperparameters."""
        return self.work.optimized_params(self.file.study)

    @property
    def uid(self) -> str | None:
        """The study's uid, None if unknown."""
        return self.record.uid if self.record else None

    def run(self) -> FinalModel:
        """Confirm the winner over seeds, train the baseline the same way, and keep the best seed of each.

        Processes that do this at the same time share the trainings. Run again, it resumes where it stopped; with the
        same study, candidates, data and settings it does nothing.

        Raises:
            InfeasibleTrialError: no candidate can be trained on this device.
            ConfigurationError: weights are missing.
            ResourceError: a GPU is requested and there is none.
            DataError: the cache is damaged.
            CsiJobError: results cannot be written.
            StopRequestedError: a signal came; the same call resumes later.
        """
        with listening() as stop:
            with self._exclusive():
                finished = self._finished()
            if finished:
                if self._shared and PLANNED_FOR in self._shared[1].user_attrs:
                    self._plan(*self._shared)  # trials may have been added that are no candidates
                return finished
            reasons = self.share_trainings()
            with self._exclusive():
                return self._finished() or self._train(reasons, stop.check)

    def share_trainings(self, *, waits: bool = True) -> dict[str, str]:
        """Do the trainings that are missing, together with every process that does; if `waits`, up to the last one.

        Return why recipes, by their digest, cannot be trained.
        """
        if self._shared is None:
            return {}
        study, confirmation = self._shared
        update = {"pruner": "none", "sampler": "random", "objective": "f1"}
        while self._plan(study, confirmation):
            run_worker(
                confirmation,
                self.confirmation.objective,
                suggest=training_of,
                settings=self.worker.model_copy(update=update),
                work=self.work.root,
                options=replace(
                    self.options,
                    on_trial_finished=lambda _: self._plan(study, confirmation),
                    may_add=False,
                    waits=waits,
                    noun="training",
                ),
            )
            if not waits:
                break
        return results_of(confirmation.get_trials(deepcopy=False))[1]

    @cached_property
    def _shared(self) -> tuple[optuna.Study, optuna.Study] | None:
        """The study and its confirmation; None if the trainings are on other data, or of no study."""
        if self.study is None or self.record is None or self.record.cache_key != self.cache.info.key:
            return None
        return self.study, open_confirmation(self.study)

    def _plan(self, study: optuna.Study, confirmation: optuna.Study) -> int:
        """Enqueue the trainings that are missing; return how many are waiting or running."""
        num_searched = storage_of(study).read(partial(count_trials, study_id=study_id_of(study))).num_finished
        progress = plan(confirmation, lambda trials: self.confirmation.trainings(*results_of(trials)), num_searched)
        self.on_progress(progress)
        return progress.num_left

    def _finished(self) -> FinalModel | None:
        """Return the models if exactly this was completed and its files are intact."""
        for folder in (self.folder, self.work.latest):  # version 0.1 wrote only the latter
            card, baseline_card = (read_valid_card(path) for path in (folder.optimized_model, folder.baseline_model))
            if card is None or not is_file(self.params_file):
                continue
            if not is_same_uid(card.get(STUDY_UID), self.uid):  # of a deleted study of the same name
                continue
            if card.get("no_baseline"):
                baseline_card = None
            elif baseline_card is None or baseline_card.get("request") != self.digest:
                continue
            if card.get("request") == self.digest:
                if folder != self.folder:
                    publish(folder, self.folder)
                logger.info("the final model is up to date (same study, data and settings); nothing is trained")
                return self._final(card, baseline_card, is_new=False)
        return None

    def _train(self, reasons: Mapping[str, str], check: Callable[[], None]) -> FinalModel:
        """Train what is missing, and write models, cards and the winner's hyperparameters.

        `reasons` say why recipes, by their digest, cannot be trained; `check` raises to end a training.
        """
        candidates, trainer = self.confirmation.candidates, replace(self.confirmation.trainer, check=check)
        archs = (self.baseline.model_arch, *(candidate.recipe.params.model_arch for candidate in candidates))
        check_pretrained(self.trial.pretrained, archs)
        num_seeds = len(self.confirmation.seeds)
        counted = f"{fmt.plural(len(candidates), 'candidate')} and the baseline over {fmt.plural(num_seeds, 'seed')}"
        with progress(f"confirming {counted}", self.confirmation.num_epochs, "epochs") as advance:
            winner = replace(self.confirmation, trainer=trainer).train_here(reasons, advance)
        if not (self.file.is_confirmed and is_file(self.params_file)):  # it lists the candidates it was chosen from
            write_optimized_params(winner, self.file.study, self.cache.info.key, self.params_file, self.record)
        baseline_card = None
        if winner.baseline.reason:  # an earlier one belongs to another request
            logger.warning("there is no baseline to compare with: %s", winner.baseline.reason)
            remove_model(self.folder.baseline_model)
        else:
            baseline_card = self._keep(self.folder.baseline_model, winner.baseline, with_pth=False)
        no_baseline = winner.baseline.reason
        card = self._keep(self.folder.optimized_model, winner.result, with_pth=True, no_baseline=no_baseline)
        return self._final(card, baseline_card, is_new=True)

    def _keep(self, path: Path, result: CandidateResult, *, with_pth: bool, no_baseline: str = "") -> dict[str, Any]:
        """Write the best seed's weights and their card, with their metrics on the validation split."""
        recipe, cache, trainer = result.candidate.recipe, self.cache, self.confirmation.trainer
        state = trainer.weights(recipe, result.best)
        model = build_model(recipe.params.model_arch)
        model.load_state_dict(state)
        loaded = LoadedModel(
            name=path.name,
            model=model,
            architecture=recipe.params.model_arch,
            image_size_px=cache.info.image_size_px,
            normalisation=cache.info.normalisation,
            device=choose_device(self.trial),
            card={},
            precision=self.trial.precision,
        )
        validation = evaluate_model(
            loaded,
            cache.validation,
            self.evaluation,
            split="validation",
            cache=cache.info.key,
            train_zones_NZ=cache.train.zones_NZ,
        )
        is_searched_elsewhere = self.file.cache not in ("", cache.info.key) and recipe.params != self.baseline
        context = CardContext(
            name=path.stem,
            study=self.file.study,
            trainer=trainer,
            num_patients=cache.num_patients,
            warnings=(OTHER_DATA,) if is_searched_elsewhere else (),
            request_digest=self.digest,
            study_uid=self.uid,
            max_image_side_px=self.max_image_side_px,
            no_baseline=no_baseline,
        )
        return write_model(path, state, build_card(context, result, validation), with_pth=with_pth)

    def _final(self, card: dict[str, Any], baseline_card: dict[str, Any] | None, *, is_new: bool) -> FinalModel:
        """Make these models the latest, unless they are."""
        latest = self.work.latest
        shown = ((latest.optimized_model, card), (latest.baseline_model, baseline_card))
        if any(read_valid_card(path) != own for path, own in shown):
            publish(self.folder, latest)
        return FinalModel(self.folder.optimized_model, card, baseline_card, self.params_file, is_new)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the study's lock, so that two processes do not train the same; the death of one frees it."""
        folder = self.work.candidates(self.file.study)
        with explain_os_errors("the work folder cannot be written", folder):
            make_folder(folder)
        busy = "another process is training the final model of this study in this work folder; waiting for it"
        with locked(folder / ".lock", busy):
            yield
