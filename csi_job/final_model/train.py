"""The final model: the confirmed winner and the baseline, trained the same way, the best seed of each kept.

Nothing here reads the pixels of the test set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from csi_job.cache.dataset import load_info, load_split
from csi_job.errors import InfeasibleTrialError, explain_os_errors
from csi_job.evaluation.evaluate import Evaluation, evaluate_model
from csi_job.evaluation.model_file import LoadedModel
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import locked
from csi_job.final_model.candidates import (
    Candidate,
    CandidateResult,
    Winner,
    confirm_candidates,
    find_candidates,
    write_optimized_params,
)
from csi_job.final_model.card import FORMAT, CardContext, build_card
from csi_job.final_model.export import read_whole_card, remove_model, write_model
from csi_job.final_model.hyperparams import HyperparamsFile
from csi_job.final_model.seeds import Recipe, SeedTrainer, digest_of
from csi_job.final_model.settings import FinalModelSettings
from csi_job.logs import get_logger, progress
from csi_job.radiographs.split import SPLITS
from csi_job.signals import listening
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.memory import choose_device
from csi_job.trial.model import build_model
from csi_job.trial.pretrained import check_pretrained
from csi_job.trial.settings import TrialSettings
from csi_job.work_folder import WorkFolder

BUSY = "another process trains the final model of this study in this work folder; waiting for it"
OTHER_DATA = "the hyperparameters were searched on another cache than the one trained on"

logger = get_logger(__name__)


@dataclass(frozen=True)
class FinalModel:
    """The models that were kept, with their cards; `is_new` is False where everything was there already.

    `baseline` and its card are None where the baseline cannot be trained on this device.
    """

    path: Path
    card: dict[str, Any]
    baseline: Path | None
    baseline_card: dict[str, Any] | None
    optimized_params: Path
    is_new: bool


def run_final_training(
    work: Path,
    cache_folder: Path,
    file: HyperparamsFile,
    study: optuna.Study | None,
    baseline: Hyperparameters,
    settings: FinalModelSettings,
    trial: TrialSettings,
    evaluation: EvaluationSettings,
) -> FinalModel:
    """Confirm the winner over seeds, train the baseline likewise, and keep the best seed of each.

    Run again, it goes on where it stopped; with the same study, candidates, data and settings it does nothing.

    Args:
        work: the work folder.
        cache_folder: a finished cache.
        file: the hyperparameters to start from.
        study: the study that the file is from; None: the file's hyperparameters are the only candidate.
        baseline: the hyperparameters to compare with.
        settings: candidates, seeds and epochs.
        trial: everything of training that is not searched.
        evaluation: of the metrics on the validation split in the cards.

    Raises:
        InfeasibleTrialError: no candidate can be trained on this device.
        ConfigurationError: a device or weights that are not there.
        DataError: a damaged cache.
        CsiJobError: results cannot be written.
        StopRequestedError: a signal came; the same call goes on later.

    """
    paths = WorkFolder(work)
    folder = paths.candidates(file.study)
    with _alone(folder), listening() as stop:
        info = load_info(cache_folder)
        trainer = SeedTrainer(
            folder, load_split(cache_folder, "train"), load_split(cache_folder, "validation"), info, trial, stop.check
        )
        job = _Job(
            paths=paths,
            file=file,
            candidates=tuple(find_candidates(file, study, settings.num_candidates, settings.max_epochs)),
            seeds=tuple(range(settings.seed, settings.seed + settings.num_seeds)),
            prefer_cheap=study is not None and len(study.directions) > 1,
            baseline=baseline,
            trainer=trainer,
            evaluation=evaluation,
            num_patients={split: _num_patients(cache_folder, split) for split in SPLITS},
        )
        return job.finished() or job.run()


@dataclass(frozen=True)
class _Job:
    """One final training, from candidates to files."""

    paths: WorkFolder
    file: HyperparamsFile
    candidates: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    prefer_cheap: bool
    baseline: Hyperparameters
    trainer: SeedTrainer
    evaluation: EvaluationSettings
    num_patients: dict[str, int]

    @property
    def request(self) -> str:
        """Return a digest of all that decides what is kept; it stands in the cards."""
        content = {
            "format": FORMAT,
            "study": self.file.study,
            "candidates": [[self.trainer.digest(entry.recipe), entry.trial] for entry in self.candidates],
            "seeds": self.seeds,
            "prefer_cheap": self.prefer_cheap,
            "baseline": self.baseline.to_params(),
            "evaluation": self.evaluation.model_dump(mode="json", exclude={"batch_size"}),
        }
        return digest_of(content)

    def finished(self) -> FinalModel | None:
        """Return the models if this very request was fulfilled and its files are whole."""
        card = read_whole_card(self.paths.optimized_model)
        baseline_card = read_whole_card(self.paths.baseline_model)
        params = self._params_file
        if card is None or baseline_card is None or not params.is_file():
            return None
        if {card.get("request"), baseline_card.get("request")} != {self.request}:
            return None
        logger.info("The final model is there already, for the same study, data and settings; nothing is trained.")
        return self._final(card, baseline_card, params, is_new=False)

    def run(self) -> FinalModel:
        """Train what is not there yet, and write models, cards and the winner's parameters."""
        archs = (self.baseline.model_arch, *(candidate.recipe.params.model_arch for candidate in self.candidates))
        check_pretrained(self.trainer.settings.pretrained, archs)
        winner = self._confirm(self.candidates, f"confirming {len(self.candidates)} candidate(s)")
        recipe = Recipe(self.baseline, winner.result.candidate.recipe.max_epochs)
        baseline = self._baseline(Candidate(recipe))
        params = self._params_file
        if not (self.file.is_confirmed and params.is_file()):  # that one has the candidates it was chosen from
            write_optimized_params(winner, self.file.study, self.trainer.info.key, params)
        baseline_card = None if baseline is None else self._keep(self.paths.baseline_model, baseline, with_pth=False)
        card = self._keep(self.paths.optimized_model, winner.result, with_pth=True)
        return self._final(card, baseline_card, params, is_new=True)

    @property
    def _params_file(self) -> Path:
        return self.paths.optimized_params(self.file.study)

    def _confirm(self, candidates: Sequence[Candidate], description: str) -> Winner:
        num_epochs = len(self.seeds) * sum(candidate.recipe.max_epochs for candidate in candidates)
        with progress(f"{description} over {len(self.seeds)} seed(s)", num_epochs, "epochs") as advance:
            return confirm_candidates(
                candidates, self.seeds, self.trainer, prefer_cheap=self.prefer_cheap, advance=advance
            )

    def _baseline(self, candidate: Candidate) -> CandidateResult | None:
        """Train the baseline; where it does not fit this device, drop one from before: it is of another request."""
        try:
            return self._confirm((candidate,), "training the baseline").result
        except InfeasibleTrialError as error:
            logger.warning("There is no baseline to compare with: %s", error)
            remove_model(self.paths.baseline_model)
            return None

    def _keep(self, path: Path, result: CandidateResult, *, with_pth: bool) -> dict[str, Any]:
        """Write the best seed's weights with their card."""
        state = self.trainer.weights(result.candidate.recipe, result.best)
        warnings = (OTHER_DATA,) if self.file.cache not in ("", self.trainer.info.key) else ()
        context = CardContext(
            name=path.stem,
            study=self.file.study,
            trainer=self.trainer,
            num_patients=self.num_patients,
            warnings=warnings,
            request=self.request,
        )
        card = build_card(context, result, self._validate(path.name, state, result))
        return write_model(path, state, card, with_pth=with_pth)

    def _validate(self, name: str, state: dict[str, Any], result: CandidateResult) -> Evaluation:
        """Measure the kept weights on the validation split."""
        device, info = choose_device(self.trainer.settings), self.trainer.info
        params = result.candidate.recipe.params
        model = build_model(params.model_arch)
        model.load_state_dict(state)
        loaded = LoadedModel(
            name=name,
            model=model.to(device).eval(),
            architecture=params.model_arch,
            image_size_px=info.image_size_px,
            normalisation=info.normalisation,
            device=device,
            params=params.to_params(),
            card={},
        )
        return evaluate_model(loaded, self.trainer.validation, self.evaluation, split="validation", cache=info.key)

    def _final(
        self, card: dict[str, Any], baseline_card: dict[str, Any] | None, params: Path, *, is_new: bool
    ) -> FinalModel:
        return FinalModel(
            path=self.paths.optimized_model,
            card=card,
            baseline=None if baseline_card is None else self.paths.baseline_model,
            baseline_card=baseline_card,
            optimized_params=params,
            is_new=is_new,
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the study's lock, so that two processes do not train the same; the death of one frees it."""
    with explain_os_errors("the work folder cannot be written", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    with locked(folder / ".lock", BUSY):
        yield


def _num_patients(cache_folder: Path, split: str) -> int:
    return len(np.unique(load_split(cache_folder, split).patients_N.numpy()))  # type: ignore[arg-type] # one of SPLITS
