"""One training with one seed, kept when it is finished and gone on with when it was interrupted.

`models/candidates/<study>/<digest>/seed-<s>.json` says how the training went and `seed-<s>.safetensors` holds its best
weights; while it runs its checkpoints lie in `seed-<s>/`. The digest is of everything that decides the outcome, so a
change of parameters, data or settings trains anew, and more candidates or seeds reuse what is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from csi_job.cache.dataset import CacheInfo, SplitData
from csi_job.errors import InfeasibleTrialError, explain_os_errors
from csi_job.files import digest_file, digest_json, json_text, read_json, replacing, write_atomic
from csi_job.trial.checkpoint import valid_checkpoints
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.schedule import EpochResult
from csi_job.trial.settings import TrialSettings
from csi_job.trial.train import TrainingResult, train_model

FORMAT = 1  # part of the digest: raise it when a training with the same settings comes out another
OUTCOME_FREE = {"device", "compile", "stall_s"}  # settings that change speed, not what is learned


@dataclass(frozen=True)
class Recipe:
    """All that is trained, but for the seed."""

    params: Hyperparameters
    max_epochs: int


@dataclass(frozen=True)
class SeedResult:
    """How a training with one seed went; `val_f1` is its best, at `best_epoch` (from 0) of `num_epochs`."""

    seed: int
    val_f1: float
    best_epoch: int
    num_epochs: int
    num_parameters: int
    gflops: float
    micro_batch: int
    curve: tuple[float, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return what the model card and the table of candidates tell of it."""
        return {name: getattr(self, name) for name in ("seed", "val_f1", "best_epoch", "num_epochs")}


class SeedHooks:
    """Looks out for a request to stop at every batch, and moves the progress bar at every epoch."""

    def __init__(self, check: Callable[[], None], advance: Callable[[int], None]) -> None:
        self.check, self.advance = check, advance
        self.num_epochs = 0

    def batch_done(self) -> None:
        """Raise `StopRequestedError` if a signal came."""
        self.check()

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:  # noqa: ARG002 - the protocol's
        """Show the epochs done so far, those before an interruption included."""
        self.advance(result.epoch + 1 - self.num_epochs)
        self.num_epochs = result.epoch + 1


@dataclass(frozen=True)
class SeedTrainer:
    """Trains recipes on one cache with the same settings.

    Args:
        folder: `models/candidates/<study>`.
        train: the split to learn from.
        validation: the split that stops early and chooses the epoch.
        info: the cache they are from.
        settings: everything of training that is not searched.
        check: raises when the process is asked to stop.

    """

    folder: Path
    train: SplitData
    validation: SplitData
    info: CacheInfo
    settings: TrialSettings
    check: Callable[[], None] = lambda: None

    def digest(self, recipe: Recipe) -> str:
        """Return 16 hexadecimal digits of everything that decides how the recipe's trainings come out."""
        return digest_of({"format": FORMAT, "training": self.identity(), **asdict(recipe)})

    def identity(self) -> dict[str, Any]:
        """Return data and settings as JSON-able values."""
        settings = self.settings.model_dump(mode="json", exclude=OUTCOME_FREE)
        weights = Path(self.settings.pretrained)
        if self.settings.pretrained not in ("none", "imagenet") and weights.is_file():
            settings["pretrained"] = digest_file(weights)
        return {"cache": self.info.key, "settings": settings}

    def finished(self, recipe: Recipe, seed: int) -> SeedResult | None:
        """Return the kept result of a training, None where there is none that is whole."""
        record, weights = self._files(recipe, seed)
        try:
            content = read_json(record) or {}
            result = SeedResult(**{**content["result"], "curve": tuple(content["result"]["curve"])})
            return result if digest_file(weights) == result.sha256 else None
        except (OSError, KeyError, TypeError):
            return None

    def weights(self, recipe: Recipe, result: SeedResult) -> dict[str, Tensor]:
        """Return the best weights of a finished training."""
        return load_file(self._files(recipe, result.seed)[1])

    def run(self, recipe: Recipe, seed: int, advance: Callable[[int], None] = lambda _: None) -> SeedResult:
        """Return the kept result, or train: from the last epoch's checkpoint if there is one.

        Args:
            recipe: what to train.
            seed: of all that is random.
            advance: called with numbers of epochs, in all `max_epochs`.

        Raises:
            InfeasibleTrialError: the recipe cannot be trained here; nothing is kept, for another device may do it.
            CsiJobError: the result cannot be written.
            StopRequestedError: a signal came; the same call goes on later.

        """
        kept = self.finished(recipe, seed)
        if kept is not None:
            advance(recipe.max_epochs)
            return kept
        hooks = SeedHooks(self.check, advance)
        self._make_folder(recipe)
        try:
            result = self._keep(recipe, seed, self._train(recipe, seed, hooks))
        except InfeasibleTrialError:
            advance(recipe.max_epochs - hooks.num_epochs)
            raise
        advance(recipe.max_epochs - hooks.num_epochs)  # what early stopping saved
        return result

    def _make_folder(self, recipe: Recipe) -> None:
        """Make the recipe's folder, so that one that cannot be written is known before the training."""
        with explain_os_errors("the folder of the trainings cannot be created", self.folder):
            (self.folder / self.digest(recipe)).mkdir(parents=True, exist_ok=True)

    def _train(self, recipe: Recipe, seed: int, hooks: SeedHooks) -> TrainingResult:
        checkpoints = self._checkpoints(recipe, seed)
        return train_model(
            self.train,
            self.validation,
            recipe.params,
            self.settings,
            normalisation=self.info.normalisation,
            max_epochs=recipe.max_epochs,
            seed=seed,
            hooks=hooks,
            checkpoint_folder=checkpoints,
            resume_from=next(iter(valid_checkpoints(checkpoints)), None),
        )

    def _keep(self, recipe: Recipe, seed: int, trained: TrainingResult) -> SeedResult:
        """Write weights, then the record that makes them count, then drop the checkpoints."""
        record, weights = self._files(recipe, seed)
        state = {name: tensor.contiguous() for name, tensor in trained.best_state.items()}
        hint = "free space and run the same command again"
        with explain_os_errors("the trained weights cannot be saved", weights, hint=hint):
            with replacing(weights) as temporary:
                temporary.write_bytes(save(state))
            result = _result(trained, seed, digest_file(weights))
            content = {"params": recipe.params.to_params(), "max_epochs": recipe.max_epochs, "result": asdict(result)}
            write_atomic(record, json_text(content))
        shutil.rmtree(self._checkpoints(recipe, seed), ignore_errors=True)
        return result

    def _files(self, recipe: Recipe, seed: int) -> tuple[Path, Path]:
        stem = self.folder / self.digest(recipe) / f"seed-{seed}"
        return stem.with_suffix(".json"), stem.with_suffix(".safetensors")

    def _checkpoints(self, recipe: Recipe, seed: int) -> Path:
        return self.folder / self.digest(recipe) / f"seed-{seed}"


def digest_of(content: Any) -> str:
    """Return 16 hexadecimal digits of JSON-able content."""
    return digest_json(content)[:16]


def _result(trained: TrainingResult, seed: int, sha256: str) -> SeedResult:
    return SeedResult(
        seed=seed,
        val_f1=trained.best_val_f1,
        best_epoch=trained.best_epoch,
        num_epochs=len(trained.epochs),
        num_parameters=trained.num_parameters,
        gflops=trained.gflops,
        micro_batch=trained.micro_batch,
        curve=tuple(epoch.val_f1 for epoch in trained.epochs),
        sha256=sha256,
    )
