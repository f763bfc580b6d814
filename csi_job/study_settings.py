"""The settings and the study: what it stores of them, and whether they agree with what it stored."""

from typing import Any

from csi_job.cache.settings import NODE_ONLY
from csi_job.config import Settings
from csi_job.errors import ConfigurationError
from csi_job.files import exists
from csi_job.storage.storage import open_storage
from csi_job.storage.url import database_address
from csi_job.study.definition import Definition, check_same, without_data
from csi_job.study.record import StudyRecord
from csi_job.study.studies import results_owner
from csi_job.trial.hyperparameters import Hyperparameters

KEY_FILE = {"wandb_api_key_file"}
NOT_STORED: Any = {
    "work": True,
    "radiographs": {"labels", "images"},
    "cache": NODE_ONLY,
    "trial": {"device"},
    "study": {"name", "timeout_s", "workers"},
    "storage": True,
    "tracking": True,
}


def definition_of(settings: Settings, cache_key: str, name: str | None = None) -> Definition:
    """Define the study that the settings name, or one of another name, on a cache."""
    study = settings.study if name is None else settings.study.model_copy(update={"name": name})
    return Definition.of(
        study,
        settings.space,
        settings.baseline.model_dump(),
        cache_key=cache_key,
        average=settings.trial.objective_average,
        results=results_only(settings),
        tree=stored_tree(settings),
    )


def baseline_of(settings: Settings, record: StudyRecord | None) -> Hyperparameters:
    """Return trial 0's hyperparameters, where a study has one."""
    if record is not None and record.baseline:
        return Hyperparameters.from_params(record.baseline)
    return settings.baseline.hyperparameters()


def check_settings(settings: Settings, record: StudyRecord) -> None:
    """Raise `ConfigurationError` if settings that change results are not those of the study, whatever the data."""
    check_same(record.fingerprint, definition_of(settings, record.cache_key).fingerprint, record.name)


def check_results(settings: Settings, record: StudyRecord | None) -> None:
    """Check that the results in the work folder are not of a study of this name in another database.

    `record` is None if the database of the settings has no study of this name: then none there can have written them.
    """
    database = database_address(settings.storage, settings.work)
    try:
        results_owner(settings.folder, settings.study.name, record.uid if record else "", database)
    except ConfigurationError:
        if record is None and not (database.is_sqlite and not exists(database.path)):
            open_storage(settings.storage, settings.work, create=False).close()  # what is wrong with it comes first
        raise


def check_training(settings: Settings, record: StudyRecord) -> None:
    """Check that a final model is trained as the study's trials were, though it may be on more data; see above."""
    definition = definition_of(settings, record.cache_key)
    stored = without_data(record.fingerprint)
    check_same(stored, without_data(definition.fingerprint), record.name)
    definition.warn_of_unknown(record.fingerprint)


def stored_tree(settings: Settings) -> dict[str, Any]:
    """Return what a study stores of the settings: all but secrets, paths, and what concerns only one process."""
    tree = settings.model_dump(mode="json", exclude=NOT_STORED)
    if settings.trial.is_weights_file:
        del tree["trial"]["pretrained"]  # the fingerprint has its digest
    return tree | {"tracking": settings.tracking.model_dump(mode="json", exclude=KEY_FILE, exclude_defaults=True)}


def results_only(settings: Settings) -> dict[str, Any]:
    """Return the settings that decide the results of a trial, besides those of `Definition.of`."""
    trial = settings.trial.results_only()
    del trial["objective_average"]
    radiographs, cache = settings.radiographs, settings.cache
    return {
        "trial": trial,
        "radiographs": {"split": radiographs.split.model_dump(), "max_image_side_px": radiographs.max_image_side_px},
        "cache.image_size_px": cache.image_size_px,
        "cache.normalisation": cache.normalisation,
    }
