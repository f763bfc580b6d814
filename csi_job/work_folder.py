"""Where each file of the `--work` folder is; nothing is written here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi_job.errors import ConfigurationError, ModelFileError, NoStudyError
from csi_job.files import is_file

CONFIRMATION: Final = "/confirmation"
"""What the study that confirms another adds to its name; no study of a user has a slash there."""


@dataclass(frozen=True)
class ModelFolder:
    """A final model, its baseline, and their evaluations on the test set."""

    path: Path

    @property
    def optimized_model(self) -> Path:
        """The final model; its card has the same stem."""
        return self.path / "optimized_model.safetensors"

    @property
    def baseline_model(self) -> Path:
        """The baseline that the final model is compared with."""
        return self.path / "baseline_model.safetensors"

    @property
    def evaluations(self) -> Path:
        """The evaluations on the test set."""
        return self.path / "evaluation"

    def evaluation_page(self, stem: str) -> Path:
        """Return the page of an evaluated model, or of the `comparison`."""
        return self.evaluations / f"{stem}_plots.html"

    @property
    def work(self) -> "WorkFolder":
        """The work folder it lies in."""
        above = self.path.parent
        is_of_study = above.name == "final" and above.parent.name == "models"
        return WorkFolder(above.parents[1] if is_of_study else above)

    @property
    def within_work(self) -> Path:
        """The path from the work folder."""
        return self.path.relative_to(self.work.root)


@dataclass(frozen=True)
class WorkFolder:
    """Every path under the work folder; a name of a study or cache that leads out of it is refused.

    ```text
    studies.db                                 the study database, unless storage.url names another
    problems.csv                               rows and images that cannot be used, by name
    cache/<key>/                               finished caches; identity.key beside them makes pseudonyms
    checkpoints/<study>/trial-<number>/        checkpoints of running trials: attempt-<number>-<uid of the study>/
    checkpoints/<study>/confirmation/          the same of the trainings that confirm its winner
    compiled/                                  code of networks, by torch.compile
    wandb/                                     runs of Weights & Biases
    models/hyperopt/<study>_*                  best parameters, settings, plots and report of a search
    models/hyperopt/.<study>.json              which study of that name these and its models are of
    models/candidates/<study>/                 trainings of the candidates, one per seed
    models/final/<study>/                      the study's final models, their cards and evaluations
    models/{optimized,baseline}_model.*        those of the study that was trained last
    models/evaluation/                         metrics, predictions and figures of those
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
        return self.caches / _name(key)

    @property
    def identity_key(self) -> Path:
        """The key of the pseudonyms."""
        return self.caches / "identity.key"

    def checkpoints(self, study: str) -> Path:
        """Return the folder of a study's checkpoints; those of its confirmation lie in it."""
        confirmed = study.removesuffix(CONFIRMATION)
        folder = self.root / "checkpoints" / _name(confirmed)
        return folder if confirmed == study else folder / "confirmation"

    def trial_checkpoints(self, study: str, number: int) -> Path:
        """Return the folder of all attempts of a trial."""
        return self.checkpoints(study) / f"trial-{number}"

    @property
    def compiled(self) -> Path:
        """What torch.compile keeps."""
        return self.root / "compiled"

    @property
    def wandb(self) -> Path:
        """The runs of Weights & Biases."""
        return self.root / "wandb"

    def wandb_summary(self, uid: str) -> Path:
        """Return the file of a study's summary on its way to Weights & Biases."""
        return self.wandb / f"{_name(uid)}-summary.json"

    @property
    def hyperopt(self) -> Path:
        """The results of searches."""
        return self.root / "models" / "hyperopt"

    def best_params(self, study: str) -> Path:
        """Return the file of the best trial's hyperparameters."""
        return self.hyperopt / f"{_name(study)}_best_params.json"

    def optimized_params(self, study: str) -> Path:
        """Return the file of the confirmed candidate's hyperparameters."""
        return self.hyperopt / f"{_name(study)}_optimized_params.json"

    def study_settings(self, study: str) -> Path:
        """Return the settings file that repeats a study."""
        return self.hyperopt / f"{_name(study)}_settings.yaml"

    def owner(self, study: str) -> Path:
        """Return the file that says which study of that name has its results in `models/`."""
        return self.hyperopt / f".{_name(study)}.json"

    def report(self, study: str) -> Path:
        """Return the report of a study."""
        return self.hyperopt / f"{_name(study)}_report.html"

    def candidates(self, study: str) -> Path:
        """Return the folder of the candidates' trainings."""
        return self.root / "models" / "candidates" / _name(study)

    def final(self, study: str) -> ModelFolder:
        """Return the folder of a study's final model."""
        return ModelFolder(self.root / "models" / "final" / _name(study))

    @property
    def latest(self) -> ModelFolder:
        """The folder with the final model that was trained last, of whichever study."""
        return ModelFolder(self.root / "models")


def model_file(folder: WorkFolder, path: Path | None, flag: str = "--model-path") -> Path:
    """Return the model file that is named, by default the final model; raise `ModelFileError` if it is missing."""
    model = path or folder.latest.optimized_model
    if not is_file(model):
        hint = f"name one with {flag}, or train one: csi-job train-optimized"
        raise ModelFileError("there is no such model file", got=str(model), hint=hint)
    return model


def no_cache(folder: WorkFolder) -> ConfigurationError:
    """Return the error that there is no cache at all."""
    hint = "build it with csi-job cache build --labels TABLE --images FOLDER, or name the --work folder that has it"
    return ConfigurationError("there is no cache yet", got=str(folder.caches), hint=hint)


def no_database(path: Path) -> NoStudyError:
    """Return the error that there is no SQLite file."""
    what = "there is no study yet: the database file does not exist"
    return NoStudyError(what, got=str(path), hint="`csi-job hyperopt` creates it")


def _name(name: str) -> str:
    """Return a name that is one part of a path; a database or a file may hold any other."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        what = "this name leads out of the work folder"
        raise ConfigurationError(what, got=name, allowed="a name of a study or cache, without slashes")
    return name
