"""Where each file of the `--work` folder is; nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csi_job.errors import ConfigurationError, ModelFileError


@dataclass(frozen=True)
class WorkFolder:
    """Every path under the work folder.

    ```text
    studies.db                                 the study database, unless storage.url names another
    problems.csv                               rows and images that cannot be used, by name
    cache/<key>/                               finished caches; identity.key beside them makes pseudonyms
    checkpoints/<study>/trial-<number>/        checkpoints of running trials, one folder per attempt
    wandb/                                     runs of Weights & Biases
    models/hyperopt/<study>_*                  best parameters, settings, plots and report of a search
    models/candidates/<study>/                 trainings of the candidates, one per seed
    models/{optimized,baseline}_model.*        the final models and their cards
    models/evaluation/                         metrics, predictions and figures on the test set
    ```
    """

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.root / "studies.db"

    @property
    def problems(self) -> Path:
        """The list of rows and images that cannot be used."""
        return self.root / "problems.csv"

    @property
    def caches(self) -> Path:
        """The folder of all caches."""
        return self.root / "cache"

    def cache(self, key: str) -> Path:
        """Return the folder of the cache with this key."""
        return self.caches / key

    @property
    def identity_key(self) -> Path:
        """The key of the pseudonyms."""
        return self.caches / "identity.key"

    def checkpoints(self, study: str) -> Path:
        """Return the folder of a study's checkpoints."""
        return self.root / "checkpoints" / study

    def trial_checkpoints(self, study: str, number: int) -> Path:
        """Return the folder of all attempts of a trial."""
        return self.checkpoints(study) / f"trial-{number}"

    @property
    def wandb(self) -> Path:
        """The runs of Weights & Biases."""
        return self.root / "wandb"

    @property
    def hyperopt(self) -> Path:
        """The results of searches."""
        return self.root / "models" / "hyperopt"

    def best_params(self, study: str) -> Path:
        """Return the file of the best trial's hyperparameters."""
        return self.hyperopt / f"{study}_best_params.json"

    def optimized_params(self, study: str) -> Path:
        """Return the file of the confirmed candidate's hyperparameters."""
        return self.hyperopt / f"{study}_optimized_params.json"

    def study_settings(self, study: str) -> Path:
        """Return the settings file that repeats a study."""
        return self.hyperopt / f"{study}_settings.yaml"

    def report(self, study: str) -> Path:
        """Return the report of a study."""
        return self.hyperopt / f"{study}_report.html"

    def candidates(self, study: str) -> Path:
        """Return the folder of the candidates' trainings."""
        return self.root / "models" / "candidates" / study

    @property
    def optimized_model(self) -> Path:
        """The final model; its card has the same stem."""
        return self.root / "models" / "optimized_model.safetensors"

    @property
    def baseline_model(self) -> Path:
        """The baseline that the final model is compared with."""
        return self.root / "models" / "baseline_model.safetensors"

    @property
    def evaluations(self) -> Path:
        """The evaluations on the test set."""
        return self.root / "models" / "evaluation"

    def evaluation_page(self, stem: str) -> Path:
        """Return the page of an evaluated model, or of the `comparison`."""
        return self.evaluations / f"{stem}_plots.html"


def model_file(folder: WorkFolder, path: Path | None) -> Path:
    """Return the model file that is named, by default the final model; raise `ModelFileError` if it is missing."""
    model = path or folder.optimized_model
    if not model.is_file():
        hint = "name one with --model-path, or train one: csi-job train-optimized"
        raise ModelFileError("there is no such model file", got=str(model), hint=hint)
    return model


def no_cache(folder: WorkFolder) -> ConfigurationError:
    """Return the error that there is no cache."""
    hint = "build it: csi-job cache build --labels TABLE --images FOLDER (and the same --work, --image-size)"
    return ConfigurationError("there is no cache for these settings", got=str(folder.caches), hint=hint)
