"""One training with one seed: its result is kept when it finishes, and it resumes when it was interrupted.

`models/candidates/<study>/<recipe digest>/seed-<s>.json` records how the training went and `seed-<s>.safetensors` holds
its best weights; while it runs, its checkpoints are in `seed-<s>/`. The digest covers everything that decides the
result, so changed hyperparameters, data or settings train again, and more candidates or seeds reuse what is there.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file, save
from torch import Tensor

from csi_job.cache.dataset import Cache
from csi_job.errors import CheckpointWriteError, InfeasibleTrialError, explain_os_errors
from csi_job.files import digest_file, digest_json, json_text, make_folder, read_json, replacing, write_atomic
from csi_job.trial.checkpoint import valid_checkpoints
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.schedule import EpochResult
from csi_job.trial.settings import TrialSettings
from csi_job.trial.train import TrainingResult, train_model

FORMAT = 1  # part of the digest: raise it when the same settings train to another result


@dataclass(frozen=True)
class Recipe:
    """What to train, except for the seed."""

    params: Hyperparameters
    max_epochs: int


@dataclass(frozen=True)
class SeedResult:
    """The result of a training with one seed; `val_f1` is its best, at `best_epoch` (from 0) of `num_epochs`."""

    seed: int
    val_f1: float
    best_epoch: int
    num_epochs: int
    num_parameters: int
    gflops: float
    micro_batch: int
    curve: tuple[float, ...]
    sha256: str

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """Return a result as `asdict` and JSON stored it; raise `KeyError` or `TypeError` if it is not one."""
        return cls(**{**stored, "curve": tuple(stored["curve"])})

    def to_json(self) -> dict[str, Any]:
        """Return what the model card and the table of candidates show."""
        return {name: getattr(self, name) for name in ("seed", "val_f1", "best_epoch", "num_epochs")}


class SeedHooks:
    """Checks for a request to stop at every batch, and advances the progress bar at every epoch."""

    def __init__(self, check: Callable[[], None], advance: Callable[[int], None]) -> None:
        self.batch_done, self.advance = check, advance
        self.num_epochs = 0

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:  # noqa: ARG002 - the protocol's
        """Show the epochs done so far, including those before an interruption."""
        self.advance(result.epoch + 1 - self.num_epochs)
        self.num_epochs = result.epoch + 1

    def checkpoint_failed(self, error: CheckpointWriteError) -> None:
        """End the command: where no checkpoint can be written, its result cannot be either."""
        raise error


@dataclass(frozen=True)
class SeedTrainer:
    """Trains recipes on one cache with the same settings.

    Args:
        folder: `models/candidates/<study>`.
        cache: its training split is learned from; its validation split stops early and chooses the epoch.
        settings: the training settings that are not searched.
        check: raises when the process is asked to stop.
    """

    folder: Path
    cache: Cache
    settings: TrialSettings
    check: Callable[[], None] = lambda: None

    def recipe_digest(self, recipe: Recipe) -> str:
        """Return 16 hexadecimal digits of everything that decides how the recipe's trainings come out."""
        training = {"cache": self.cache.info.key, "settings": self.settings.results_only()}
        return digest_json({"format": FORMAT, "training": training, **asdict(recipe)})[:16]

    def finished(self, recipe: Recipe, seed: int) -> SeedResult | None:
        """Return the stored result of a training, None if it is missing or damaged."""
        stem = self._stem(recipe, seed)
        try:
            result = SeedResult.of((read_json(stem.with_suffix(".json")) or {})["result"])
            return result if digest_file(stem.with_suffix(".safetensors")) == result.sha256 else None
        except (OSError, KeyError, TypeError):
            return None

    def weights(self, recipe: Recipe, result: SeedResult) -> dict[str, Tensor]:
        """Return the best weights of a finished training."""
        return load_file(self._stem(recipe, result.seed).with_suffix(".safetensors"))

    def run(self, recipe: Recipe, seed: int, advance: Callable[[int], None] = lambda _: None) -> SeedResult:
        """Return the stored result, or train, resuming from the last checkpoint if there is one.

        `advance` is called with numbers of epochs, `max_epochs` in total.

        Raises:
            InfeasibleTrialError: the recipe cannot be trained here; nothing is kept, since another device may do it.
            CsiJobError: the result cannot be written.
            StopRequestedError: a signal came; the same call resumes later.
        """
        if stored := self.finished(recipe, seed):
            advance(recipe.max_epochs)
            return stored
        stem = self._stem(recipe, seed)
        self.prepare(recipe)
        hooks = SeedHooks(self.check, advance)
        try:
            trained = train_model(
                self.cache.train,
                self.cache.validation,
                recipe.params,
                self.settings,
                max_epochs=recipe.max_epochs,
                seed=seed,
                hooks=hooks,
                checkpoint_folder=stem,
                resume_from=next(iter(valid_checkpoints(stem)), None),
            )
        except InfeasibleTrialError:
            advance(recipe.max_epochs - hooks.num_epochs)
            raise
        result = self.keep(recipe, seed, trained)
        advance(recipe.max_epochs - hooks.num_epochs)  # what early stopping saved
        return result

    def prepare(self, recipe: Recipe) -> None:
        """Create the folder of a recipe, so that one that cannot be written fails before the training."""
        with explain_os_errors("the folder of the trainings cannot be created", self.folder):
            make_folder(self.folder / self.recipe_digest(recipe))

    def keep(self, recipe: Recipe, seed: int, trained: TrainingResult) -> SeedResult:
        """Write the weights, then the record that makes them count, then remove the checkpoints."""
        stem = self._stem(recipe, seed)
        weights = stem.with_suffix(".safetensors")
        state = {name: tensor.contiguous() for name, tensor in trained.best_state.items()}
        with explain_os_errors("the trained weights cannot be saved", weights):
            with replacing(weights) as temporary:
                temporary.write_bytes(save(state))
            result = SeedResult(
                seed=seed,
                val_f1=trained.best_val_f1,
                best_epoch=trained.best_epoch,
                num_epochs=len(trained.epochs),
                num_parameters=trained.num_parameters,
                gflops=trained.gflops,
                micro_batch=trained.micro_batch,
                curve=tuple(epoch.val_f1 for epoch in trained.epochs),
                sha256=digest_file(weights),
            )
            content = {"params": recipe.params.to_params(), "max_epochs": recipe.max_epochs, "result": asdict(result)}
            write_atomic(stem.with_suffix(".json"), json_text(content))
        shutil.rmtree(stem, ignore_errors=True)
        return result

    def _stem(self, recipe: Recipe, seed: int) -> Path:
        """Return the folder of the checkpoints, which the record and the weights are next to."""
        return self.folder / self.recipe_digest(recipe) / f"seed-{seed}"
