"""What can be found wrong in a call before PyTorch and Optuna are imported, which takes seconds."""

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from csi_job.cache.settings import CacheSettings
from csi_job.config import Settings
from csi_job.errors import ConfigurationError
from csi_job.files import exists, is_file, is_folder
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.study.settings import check_objective
from csi_job.tracking.settings import wandb_mode
from csi_job.trial.architectures import check_architecture
from csi_job.work_folder import WorkFolder, model_file, no_cache


def check_call(settings: Settings, shown: Collection[str], given: Mapping[str, Any]) -> None:
    """Reject paths that do not exist, and data that no cache can replace.

    Args:
        settings: the settings of the call.
        shown: the settings that the command has flags for.
        given: the command's other arguments by name.
    """
    work = settings.work.absolute()
    place = next(path for path in (work, *work.parents) if os.path.lexists(path))
    if not _is_folder(place):
        raise ConfigurationError(
            "the work folder is a file or a broken link", got=str(place), hint="name a folder with --work"
        )
    check_arguments(settings.folder, given)
    if "evaluation.num_bootstrap" in shown:
        model_file(settings.folder, given.get("model_path"))
    if "study.sampler" in shown:
        check_objective(settings.study)
    if "tracking.wandb_project" in shown and settings.tracking.wandb_project is not None:
        wandb_mode(settings.tracking)
    pretrained = settings.trial.pretrained
    if "trial.pretrained" in shown and pretrained not in ("none", "imagenet") and not is_file(Path(pretrained)):
        message = "trial.pretrained: no such weights file"
        raise ConfigurationError(message, got=pretrained, allowed="none, imagenet, or the path to a file")
    if "radiographs.labels" in shown:
        check_data(settings.radiographs, settings.cache, settings.folder)
    if "storage.url" in shown and settings.storage.url is not None:
        from csi_job.storage.url import database_address

        database_address(settings.storage, settings.work)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return isinstance(error, PermissionError)  # if it matters, its user says so


def check_arguments(folder: WorkFolder, given: Mapping[str, Any]) -> None:
    """Reject paths among a command's arguments that do not exist."""
    if "model_path" in given:
        model_file(folder, given["model_path"])
    if (baseline := given.get("baseline")) is not None:
        model_file(folder, baseline, "--baseline")
    if (model_arch := given.get("model_arch")) is not None:
        check_architecture(model_arch)
    if (hyperparams := given.get("hyperparams")) is not None and not is_file(hyperparams):
        from csi_job.final_model.hyperparams import read_hyperparams

        read_hyperparams(hyperparams, default_study="", default_max_epochs=1)
    if (output := given.get("output")) is not None and not is_folder(output.absolute().parent):
        raise ConfigurationError("the folder of --output does not exist", got=str(output.parent))
    images = given.get("images") or ()
    if images and not any(exists(path) for path in images):
        named = ", ".join(str(path) for path in images[:3])
        raise ConfigurationError("none of the images exists", got=named, hint="name image files or folders")


def check_data(radiographs: RadiographsSettings, cache: CacheSettings, folder: WorkFolder) -> None:
    """Reject a missing table or folder of images, or neither without a cache."""
    labels, images = radiographs.labels, radiographs.images
    has_cache = any(folder.caches.glob("[!.]*/manifest.json"))
    if labels is None and images is None:
        if not has_cache:
            raise no_cache(folder)
        return
    if has_cache and labels and images and not exists(labels) and not exists(images):
        from csi_job.cache.key import find_cache

        if find_cache(radiographs, cache, folder.root):  # as in pods that only train
            return
    if labels is not None and not os.path.isfile(labels):  # noqa: PTH113 - raises nothing
        from csi_job.radiographs.table import read_table

        read_table(labels, radiographs)
    if images is not None and not os.path.isdir(images):  # noqa: PTH112 - raises nothing
        from csi_job.radiographs.read import find_images

        find_images(images, (), ())
    if labels is None or images is None:
        missing = "radiographs.labels" if labels is None else "radiographs.images"
        raise ConfigurationError(f"{missing} is not set", hint="give --labels TABLE and --images FOLDER")
