"""The final model: the confirmed winner and the baseline, trained the same way, the best seed of each kept.

Nothing here reads the pixels of the test set.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna

from csi_job.cache.dataset import Cache
from csi_job.errors import explain_os_errors
from csi_job.evaluation.evaluate import evaluate_model
from csi_job.evaluation.model_file import LoadedModel
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import digest_json, locked, make_folder
from csi_job.final_model.candidates import CandidateResult, find_candidates, write_optimized_params
from csi_job.final_model.card import FORMAT, CardContext, build_card
from csi_job.final_model.confirmation import Confirmation, confirm, results_of
from csi_job.final_model.export import publish, read_valid_card, remove_model, write_model
from csi_job.final_model.hyperparams import HyperparamsFile
from csi_job.final_model.seeds import SeedTrainer
from csi_job.final_model.settings import FinalModelSettings
from csi_job.html import format as fmt
from csi_job.logs import progress
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.signals import listening
from csi_job.storage.attributes import STUDY_UID, is_same_uid
from csi_job.study.confirmation import Progress
from csi_job.study.record import StudyRecord
from csi_job.study.settings import StudySettings
from csi_job.study.worker import WorkerOptions
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.memory import choose_device
from csi_job.trial.model import build_model
from csi_job.trial.pretrained import check_pretrained
from csi_job.trial.settings import TrialSettings
from csi_job.work_folder import WorkFolder

OTHER_DATA = "the hyperparameters were searched on a different cache from the one trained on"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalTrainingRequest:
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

    def confirmation(self, check: Callable[[], None] = lambda: None) -> Confirmation:
        """Return what decides the winner; trainings end with what `check` raises."""
        settings = self.settings
        return Confirmation(
            find_candidates(self.file, self.study, settings.num_candidates, settings.max_epochs),
            self.baseline,
            range(settings.seed, settings.seed + settings.num_seeds),
            SeedTrainer(self.work.candidates(self.file.study), self.cache, self.trial, check),
            prefer_cheap=self.study is not None and len(self.study.directions) > 1,
        )

    def share_trainings(self, *, waits: bool = True) -> dict[str, str]:
        """Do the trainings together with the other processes of the study, up to the last one if `waits`.

        Return why recipes, by their digest, cannot be trained.
        """
        if self.study is None or self.record is None or self.record.cache_key != self.cache.info.key:
            return {}
        options = replace(self.options, waits=waits)
        beside = confirm(self.study, self.confirmation(), self.worker, self.work.root, options, self.on_progress)
        return results_of(beside.get_trials(deepcopy=False))[1]


@dataclass(frozen=True)
class FinalModel:
    """The kept models and their cards; `is_new` is False where everything was up to date.

    `baseline` and its card are None where the baseline cannot be trained on this device.
    """

    path: Path
    card: dict[str, Any]
    baseline: Path | None
    baseline_card: dict[str, Any] | None
    optimized_params: Path
    is_new: bool


def run_final_training(request: FinalTrainingRequest) -> FinalModel:
    """Confirm the winner over seeds, train the baseline the same way, and keep the best seed of each.

    Processes that do this at the same time share the trainings. Run again, it resumes where it stopped; with the same
    study, candidates, data and settings it does nothing.

    Raises:
        InfeasibleTrialError: no candidate can be trained on this device.
        ConfigurationError: a device or weights are missing.
        DataError: the cache is damaged.
        CsiJobError: results cannot be written.
        StopRequestedError: a signal came; the same call resumes later.
    """
    folder = request.work.candidates(request.file.study)
    with listening() as stop:
        training = _FinalTraining(request, request.confirmation(stop.check))
        with _exclusive(folder):
            finished = training.finished()
        if finished:
            return finished
        reasons = request.share_trainings()
        with _exclusive(folder):
            return training.finished() or training.run(reasons)


class _FinalTraining:
    def __init__(self, request: FinalTrainingRequest, confirmation: Confirmation) -> None:
        self.request, self.work = request, request.work
        self.confirmation, self.trainer = confirmation, confirmation.trainer
        self.params_file = self.work.optimized_params(request.file.study)
        self.folder = self.work.final(request.file.study)
        self.uid = request.record.uid if request.record else None

    @cached_property
    def request_digest(self) -> str:
        """Return a digest of everything that decides what is kept; the cards carry it."""
        content = {
            "format": FORMAT,
            "study": self.request.file.study,
            "candidates": [
                [self.trainer.recipe_digest(entry.recipe), entry.trial] for entry in self.confirmation.candidates
            ],
            "seeds": [*self.confirmation.seeds],
            "prefer_cheap": self.confirmation.prefer_cheap,
            "baseline": self.request.baseline.to_params(),
            "evaluation": self.request.evaluation.model_dump(mode="json", exclude={"batch_size"}),
        }
        return digest_json(content)[:16]

    def finished(self) -> FinalModel | None:
        """Return the models if this exact request was completed and its files are intact."""
        for folder in (self.folder, self.work.latest):  # version 0.1 wrote only the latter
            card, baseline_card = (read_valid_card(path) for path in (folder.optimized_model, folder.baseline_model))
            if card is None or baseline_card is None or not self.params_file.is_file():
                continue
            if not is_same_uid(card.get(STUDY_UID), self.uid):  # of a deleted study of the same name
                continue
            if {card.get("request"), baseline_card.get("request")} == {self.request_digest}:
                if folder != self.folder:
                    publish(folder, self.folder)
                logger.info("the final model is up to date (same study, data and settings); nothing is trained")
                return self._final(card, baseline_card, is_new=False)
        return None

    def run(self, reasons: Mapping[str, str]) -> FinalModel:
        """Train what is missing, and write models, cards and the winner's hyperparameters.

        `reasons` say why recipes, by their digest, cannot be trained.
        """
        candidates, baseline = self.confirmation.candidates, self.request.baseline
        archs = (baseline.model_arch, *(candidate.recipe.params.model_arch for candidate in candidates))
        check_pretrained(self.trainer.settings.pretrained, archs)
        epochs = [candidate.recipe.max_epochs for candidate in candidates]
        num_seeds = len(self.confirmation.seeds)
        num_epochs = num_seeds * (sum(epochs) + max(epochs))
        counted = f"{fmt.plural(len(candidates), 'candidate')} and the baseline over {fmt.plural(num_seeds, 'seed')}"
        with progress(f"confirming {counted}", num_epochs, "epochs") as advance:
            winner = self.confirmation.train_here(reasons, advance)
        file = self.request.file
        if not (file.is_confirmed and self.params_file.is_file()):  # that file lists the candidates it was chosen from
            cache = self.request.cache.info.key
            write_optimized_params(winner, file.study, cache, self.params_file, self.request.record)
        baseline_card = None
        if winner.baseline.reason:  # an earlier one belongs to another request
            logger.warning("there is no baseline to compare with: %s", winner.baseline.reason)
            remove_model(self.folder.baseline_model)
        else:
            baseline_card = self._keep(self.folder.baseline_model, winner.baseline, with_pth=False)
        card = self._keep(self.folder.optimized_model, winner.result, with_pth=True)
        return self._final(card, baseline_card, is_new=True)

    def _keep(self, path: Path, result: CandidateResult, *, with_pth: bool) -> dict[str, Any]:
        """Write the best seed's weights and their card, with their metrics on the validation split."""
        recipe, cache, file = result.candidate.recipe, self.request.cache, self.request.file
        state = self.trainer.weights(recipe, result.best)
        model, settings = build_model(recipe.params.model_arch), self.trainer.settings
        model.load_state_dict(state)
        loaded = LoadedModel(
            name=path.name,
            model=model,
            architecture=recipe.params.model_arch,
            image_size_px=cache.info.image_size_px,
            normalisation=cache.info.normalisation,
            device=choose_device(settings),
            card={},
            precision=settings.precision,
        )
        validation = evaluate_model(
            loaded,
            cache.validation,
            self.request.evaluation,
            split="validation",
            cache=cache.info.key,
            train_zones_NZ=cache.train.zones_NZ,
        )
        context = CardContext(
            name=path.stem,
            study=file.study,
            trainer=self.trainer,
            num_patients=cache.num_patients,
            warnings=(OTHER_DATA,) if file.cache not in ("", cache.info.key) else (),
            request_digest=self.request_digest,
            study_uid=self.uid,
            max_image_side_px=self.request.max_image_side_px,
        )
        return write_model(path, state, build_card(context, result, validation), with_pth=with_pth)

    def _final(self, card: dict[str, Any], baseline_card: dict[str, Any] | None, *, is_new: bool) -> FinalModel:
        """Make these models the latest, unless they are."""
        latest = self.work.latest
        shown = ((latest.optimized_model, card), (latest.baseline_model, baseline_card))
        if any(read_valid_card(path) != own for path, own in shown):
            publish(self.folder, latest)
        baseline = None if baseline_card is None else self.folder.baseline_model
        return FinalModel(self.folder.optimized_model, card, baseline, baseline_card, self.params_file, is_new)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the study's lock, so that two processes do not train the same; the death of one frees it."""
    with explain_os_errors("the work folder cannot be written", folder):
        make_folder(folder)
    busy = "another process is training the final model of this study in this work folder; waiting for it"
    with locked(folder / ".lock", busy):
        yield
