"""The stages in the order the data flows: cache, study, search, final model, evaluation."""

import logging
from pathlib import Path
from typing import Any

import optuna

from csi_job.cache.build import ensure_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.key import existing_cache
from csi_job.config import LoadedSettings, Settings, load_settings
from csi_job.errors import ConfigurationError
from csi_job.evaluation.run import EvaluationRun, run_evaluation
from csi_job.files import is_file
from csi_job.final_model.export import is_same_model, publish, read_valid_card, record_test_metrics
from csi_job.final_model.hyperparams import read_hyperparams
from csi_job.final_model.train import FinalModel
from csi_job.logs import announced
from csi_job.report.page.page import write_report, write_results
from csi_job.report.study_view import view_study
from csi_job.search import Search, final_training
from csi_job.storage.attributes import STUDY_UID, is_same_uid, uid_of
from csi_job.storage.storage import open_storage, storage_of
from csi_job.storage.url import database_address
from csi_job.study.definition import define_study
from csi_job.study.record import StudyRecord, read_record
from csi_job.study.settings import check_objective, checked_name
from csi_job.study.studies import claim_results, open_study, results_owner
from csi_job.study.target import set_target
from csi_job.study.worker import WorkerOptions
from csi_job.study.worker_group import worker_environments
from csi_job.study_settings import check_results, check_settings, check_training, definition_of
from csi_job.terminal.live import live_study
from csi_job.transfer.migrate import Migration, migrate_study
from csi_job.trial.memory import choose_device
from csi_job.trial.model import check_architectures, check_pretrained
from csi_job.work_folder import model_file

logger = logging.getLogger(__name__)


def optimize_hyperparameters(
    study_name: str | None = None,
    n_trials: int | None = None,
    max_epochs: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    wandb_project: str | None = None,
    **settings: Any,
) -> optuna.Study:
    """Search for the best hyperparameters from a script or a notebook.

    What is not given comes from an environment variable, else from the study if it exists, else it is the default.

    Args:
        study_name: name of the study, by default `csi_optimization`; if it exists, it is continued.
        n_trials: total number of finished trials in the study, across all workers; by default 50.
        max_epochs: maximum number of epochs per trial, by default 30.
        sampler: `tpe` (the default), `tpe_per_cost`, `random`, `cmaes` or `auto`.
        pruner: `median` (the default), `successive_halving`, `asha`, `hyperband`, `none` or `auto`.
        wandb_project: Weights & Biases project; without one, nothing is tracked.
        settings: other sections of the settings tree, e.g. `work="results"`,
            `radiographs={"labels": "labels.csv", "images": "images/"}`, `storage={"url": "sqlite:///studies.db"}`.

    Returns:
        the study, with its best value and parameters.

    Raises:
        ConfigurationError: an invalid setting, by its dotted path.
        DataError: the label table or images cannot be used.
    """
    flags = {
        "study.name": study_name,
        "study.num_trials": n_trials,
        "study.max_epochs": max_epochs,
        "study.sampler": sampler,
        "study.pruner": pruner,
        "tracking.wandb_project": wandb_project,
    }
    loaded = load_settings({path: value for path, value in {**settings, **flags}.items() if value is not None})
    given = loaded.settings
    record = read_record(given.storage, given.work, given.study.name, to_continue=True)
    return run_hyperopt(loaded.over(record) if record else loaded, is_script=True)


def _cache_to_train_on(settings: Settings, study_key: str, study_name: str = "") -> Cache:
    folder = ensure_cache(settings.radiographs, settings.cache, settings.work, study_key, study_name)
    return Cache.open(folder, settings.cache.local_copy_gib)


def _finished_cache(settings: Settings, named_key: str) -> Cache:
    return Cache.open(existing_cache(settings.radiographs, settings.cache, settings.work, named_key))


def define(settings: Settings, record: StudyRecord | None) -> tuple[optuna.Study, Cache]:
    """Check everything that would otherwise fail late, build the cache, and create the study or continue it.

    `record` is what the study records if it exists already.
    """
    check_objective(settings.study)
    model_arch = settings.space.model_arch
    archs = [str(arch) for arch in model_arch.listed] if model_arch else [settings.baseline.model_arch]
    check_pretrained(settings.trial.pretrained, archs)
    check_architectures(archs, settings.cache.image_size_px)
    check_results(settings, record)  # before hours of decoding
    if record is not None:
        check_settings(settings, record)
    storage = None
    if settings.radiographs.labels is not None and not database_address(settings.storage, settings.work).is_sqlite:
        # A wrong password must show before hours of decoding; an SQLite file is created only if the data is good.
        storage = open_storage(settings.storage, settings.work, create=True)
    cache = _cache_to_train_on(settings, record.cache_key if record else "", record.name if record else "")
    storage = storage or open_storage(settings.storage, settings.work, create=True)
    study = define_study(storage, definition_of(settings, cache.info.key))
    claim_results(study, settings.folder)
    return study, cache


def run_hyperopt(
    loaded: LoadedSettings,
    *,
    more_trials: int | None = None,
    is_script: bool = False,
    confirm: bool = False,
    report: bool = True,
) -> optuna.Study:
    """Search until the study has its total of trials, building the cache first if needed.

    With `confirm`, the workers then also do the trainings of `run_train_optimized`.
    Of the limits of an existing study, those that were given are changed, and `more_trials` are added to its trials;
    see `set_target`. With `is_script`, this process, which may be a notebook's, is not ended if training hangs; with
    several workers, each has its own process anyway.
    """
    settings = loaded.settings
    environments = worker_environments(settings.study, settings.trial)
    study, cache = define(settings, loaded.study)
    # A script, a configuration file or the environment says the same at every start, also after others changed a limit.
    is_lenient = {name: is_script or not loaded.is_flag(f"study.{name}") for name in ("num_trials", "max_epochs_total")}
    set_target(
        study,
        num_trials=settings.study.num_trials if loaded.is_given("study.num_trials") and more_trials is None else None,
        more_trials=more_trials,
        max_epochs_total=settings.study.max_epochs_total if loaded.is_given("study.max_epochs_total") else ...,
        lenient=is_lenient["num_trials"],
        lenient_epochs=is_lenient["max_epochs_total"],
    )
    Search(study, cache, settings, confirm=confirm, own_process=not is_script).run(environments)
    if report:
        write_results(study, settings.folder)
    return study


def migrate(settings: Settings, old: str, new: str, *, num_trials_given: bool) -> Migration:
    """Copy the finished trials of study `old` into study `new`, which the settings define; see `migrate_study`."""
    storage = storage_of(open_study(settings.storage, settings.work, old))
    record = read_record(settings.storage, settings.work, old, to_continue=True)
    cache = _finished_cache(settings, record.cache_key if record else "")
    definition = definition_of(settings, cache.info.key, checked_name(new))
    if record is not None:
        definition.warn_of_unknown(record.fingerprint)
    return migrate_study(storage, old, definition, num_trials=settings.study.num_trials if num_trials_given else None)


def run_train_optimized(settings: Settings, hyperparams: Path) -> FinalModel:
    """Confirm the best candidates of `<study>_best_params.json` over seeds, and export the winner and the baseline."""
    choose_device(settings.trial)
    file = read_hyperparams(
        hyperparams, default_study=settings.study.name, default_max_epochs=settings.study.max_epochs
    )
    found = read_record(settings.storage, settings.work, file.study) if file.names_study else None
    if found is not None:  # the file may be of a namesake of it
        results_owner(settings.folder, file.study, found.uid, database_address(settings.storage, settings.work))
    record = file.record_of_study(found)
    is_of_deleted = found is not None and record is not found
    if is_of_deleted:
        message = "%s is of a deleted study named %s; using only what it contains"
        logger.warning(message, hyperparams.name, file.study)
    study = None
    if file.is_search_result and not is_of_deleted:
        study = _study_of_candidates(file.study, settings)
    if record is not None:
        check_training(settings, record)
    with live_study(file.study, target=0, num_finished=0, max_epochs=file.max_epochs) as live:
        cache = _cache_to_train_on(settings, file.cache)
        options = WorkerOptions(trackers=[live.worker()])
        final = final_training(settings, cache, file, study, record, options, live.trials_finished).run()
    if study is not None:
        write_report(view_study(study), settings.work)
    return final


def _study_of_candidates(name: str, settings: Settings) -> optuna.Study | None:
    try:
        study = open_study(settings.storage, settings.work, name)
    except ConfigurationError as error:
        logger.warning("cannot open study %s, so its other trials are no candidates: %s", name, error)
        return None
    claim_results(study, settings.folder)
    return study


def run_evaluate(
    settings: Settings,
    model_path: Path | None = None,
    baseline_path: Path | None = None,
    architecture: str | None = None,
    *,
    compare: bool = True,
) -> EvaluationRun:
    """Evaluate a model (default: the final model) on the test set, and compare it with a baseline.

    The baseline is by default the one trained with the model. `architecture` names the network of a file without a
    card.
    """
    model = model_file(settings.folder, model_path)
    card = read_valid_card(model) or {}
    latest = settings.folder.latest
    folder = settings.folder.final(str(card["study"])) if card else latest
    if folder != latest and _is_copy(folder.path / model.name, card):
        model = folder.path / model.name
    else:
        folder = latest
    if baseline_path is None and compare and is_file(folder.baseline_model):
        # The one trained with the model; for a model without a card, the one beside it.
        is_own = not card or (read_valid_card(folder.baseline_model) or {}).get("request") == card["request"]
        baseline_path = folder.baseline_model if is_own else None
    with announced(f"evaluating {model.name} on the test set"):
        run = run_evaluation(
            folder,
            _finished_cache(settings, str(card.get("data", {}).get("cache", ""))),
            model,
            settings.evaluation,
            settings.trial,
            baseline_path=baseline_path,
            architecture=architecture,
        )
    record_test_metrics(model, run.evaluation)
    if baseline_path is not None and run.comparison is not None:
        record_test_metrics(baseline_path, run.comparison.baseline)
    if folder != latest and _is_copy(latest.path / model.name, card):
        publish(folder, latest)
    if card:
        _update_report(card, settings)
    return run


def _update_report(card: dict[str, Any], settings: Settings) -> None:
    """Write the report of a model's study again; if it cannot be, a warning says why."""
    try:
        study = _study_of_model(card, settings)
    except ConfigurationError as error:
        logger.warning("the report of study %s is not updated: %s", card["study"], error)
        return
    write_report(view_study(study), settings.work)


def _study_of_model(card: dict[str, Any], settings: Settings) -> optuna.Study:
    study = open_study(settings.storage, settings.work, str(card["study"]))
    if not is_same_uid(card.get(STUDY_UID), uid_of(study.user_attrs)):
        raise ConfigurationError("the model is of another study of this name", got=study.study_name)
    claim_results(study, settings.folder)
    return study


def _is_copy(model: Path, card: dict[str, Any]) -> bool:
    return is_same_model(read_valid_card(model), card)
