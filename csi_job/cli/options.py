"""Command-line options generated from the settings; each line of `FLAGS` is one flag."""

from __future__ import annotations

import functools
import gc
import math
import os
import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel, SecretStr

from csi_job.cli import START_UP_OBJECTS
from csi_job.cli.checks import check_call
from csi_job.config import LoadedSettings, Settings, load_settings
from csi_job.files import exists, read_json
from csi_job.logs import is_interactive, set_up_logging
from csi_job.settings import help_of
from csi_job.work_folder import no_database

if typing.TYPE_CHECKING:
    from csi_job.study.record import StudyRecord

Command = typing.TypeVar("Command", bound=Callable[..., Any])
FindStudy = Callable[[LoadedSettings, dict[str, Any]], "StudyRecord | None"]

FLAGS = {
    "radiographs.labels": "--labels",
    "radiographs.images": "--images",
    "work": "--work",
    "cache.image_size_px": "--image-size",
    "cache.normalisation": "--normalisation",
    "cache.num_workers": "--num-workers",
    "radiographs.split.seed": "--split-seed",
    "radiographs.max_corrupt_fraction": "--max-corrupt-fraction",
    "trial.device": "--device",
    "trial.pretrained": "--pretrained",
    "study.name": "--study-name",
    "study.num_trials": "--n-trials",
    "study.max_epochs": "--max-epochs",
    "study.max_epochs_total": "--max-epochs-total",
    "study.sampler": "--sampler",
    "study.num_startup_trials": "--n-startup-trials",
    "study.pruner": "--pruner",
    "study.objective": "--objective",
    "study.seed": "--seed",
    "study.timeout_s": "--timeout",
    "study.workers": "--workers",
    "storage.url": "--storage",
    "tracking.wandb_project": "--wandb-project",
    "final_model.num_candidates": "--candidates",
    "final_model.num_seeds": "--seeds",
    "final_model.seed": "--seed",
    "final_model.max_epochs": "--max-epochs",
    "evaluation.num_bootstrap": "--num-bootstrap",
}
DATA = ("radiographs.labels", "radiographs.images", "cache.image_size_px")
OF_A_CALL = {"work", "study.name", "storage.url", "trial.device"}  # no study or model has a value for them
TERMINAL_WAIT_S = 5.0
METAVARS = {int: "N", float: "X", Path: "PATH"}


class PathType(click.Path):
    """A path as settings have it: `~` is expanded, and it is not empty, which would mean the current folder."""

    def __init__(self, **checks: bool) -> None:
        """Take click's checks."""
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a `Path`."""
        if value == "":
            self.fail("it must not be empty", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 - raises nothing


class SecondsType(click.FloatRange):
    """A wait of at most a day; NaN, which passes every range check, is rejected."""

    def __init__(self, shortest_s: float) -> None:
        """Take the shortest wait."""
        super().__init__(min=shortest_s, max=86_400.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a finite number of seconds."""
        seconds = super().convert(value, param, ctx)
        return self.fail(f"{value} is not a number of seconds", param, ctx) if math.isnan(seconds) else seconds


def text(value: str) -> str:
    """Check a command-line argument: bytes that are not UTF-8 arrive as surrogates, which no database stores."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"not UTF-8 text, got {value!r}") from None
    return value


def with_settings(
    *paths: str,
    study: FindStudy | None = None,
    default: str = "{}",
    check: bool = True,
    reads_only: bool = False,
    needs_database: bool = False,
) -> Callable[[Command], Command]:
    """Give a command a flag for the setting at each dotted path, and pass it the `LoadedSettings` first.

    `--work`, `--config` and `--log-format` are always offered. Variables and files can set everything else. `study`
    finds the study that a call is about: its settings take the place of the defaults, which the help gives as
    `default`. `check` rejects paths that do not exist, `needs_database` a work folder without an SQLite file where no
    other database is named. Someone at a terminal waits only briefly for the database of a command that `reads_only`.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def run(*args: Any, config: Path | None, log_format: Any, **given: Any) -> Any:
            set_up_logging(log_format)
            names = {path: FLAGS[path] for path in shown}
            flags = {path: given.pop(_destination(path)) for path in shown}
            flags = {path: value for path, value in flags.items() if value is not None}
            loaded = load_settings(flags, config, flag_names=names)
            if reads_only and is_interactive() and not loaded.is_given("storage.connect_s"):
                waits = {"storage.connect_s": TERMINAL_WAIT_S, "storage.outage_s": TERMINAL_WAIT_S}
                loaded = load_settings({**waits, **flags}, config, flag_names=names)
            if check:
                check_call(loaded.settings, shown, given)
            if needs_database and loaded.settings.storage.url is None and not exists(loaded.settings.folder.database):
                raise no_database(loaded.settings.folder.database)
            record = study(loaded, given) if study else None
            if gc.get_threshold()[0] == START_UP_OBJECTS:
                gc.freeze()  # else a first collection would search all of them
                gc.set_threshold(100_000, 20, 20)  # importing torch makes half a million
            return function(loaded.over(record) if record else loaded, *args, **given)

        for option in (log_format_option, _config, *(_option(path, default) for path in reversed(shown))):
            run = option(run)
        return run  # type: ignore[return-value]

    shown = tuple(dict.fromkeys((*paths, "work")))
    return decorate


def the_study(loaded: LoadedSettings, given: dict[str, Any]) -> StudyRecord | None:
    """Find the study that the settings name, to continue it.

    Raises:
        ConfigurationError: its database cannot be used, which is no reason to take the defaults for its settings; or
            another program created it.
    """
    del given
    return _record(loaded, loaded.settings.study.name, to_continue=True)


def the_only_study(loaded: LoadedSettings, given: dict[str, Any]) -> StudyRecord | None:
    """Find the study that the settings name; where they name none, the only one will do."""
    del given
    return _record(loaded, loaded.settings.study.name, or_only=not loaded.is_given("study.name"))


def study_of_argument(*arguments: str) -> FindStudy:
    """Return what finds the study named by the first of a command's arguments that names one."""

    def find(loaded: LoadedSettings, given: dict[str, Any]) -> StudyRecord | None:
        records = (_record(loaded, given[argument]) for argument in arguments if given[argument])
        return next((record for record in records if record), None)

    return find


def study_of_hyperparams(loaded: LoadedSettings, given: dict[str, Any]) -> StudyRecord | None:
    """Find the study that a file of hyperparameters comes from, or what the file itself records of it.

    Where no file is given, it is the one that the search wrote.
    """
    from csi_job.final_model.hyperparams import read_hyperparams

    study = loaded.settings.study
    if given["hyperparams"] is None:
        name = (the_only_study(loaded, given) or study).name
        given["hyperparams"] = loaded.settings.folder.best_params(name)
    file = read_hyperparams(given["hyperparams"], default_study=study.name, default_max_epochs=study.max_epochs)
    return file.record_of_study(_record(loaded, file.study))


def study_of_model(loaded: LoadedSettings, given: dict[str, Any]) -> StudyRecord | None:
    """Find the study that a model comes from, by its card; without one, the study that the settings name."""
    model: Path = given.get("model_path") or loaded.settings.folder.latest.optimized_model
    card = read_json(model.with_suffix(".json")) or {}
    name = card.get("study")
    if not isinstance(name, str):
        return the_only_study(loaded, given)
    from csi_job.storage.attributes import STUDY_UID, is_same_uid

    record = _record(loaded, name)
    return record if record and is_same_uid(card.get(STUDY_UID), record.uid) else None


def _record(
    loaded: LoadedSettings, name: str, *, or_only: bool = False, to_continue: bool = False
) -> StudyRecord | None:
    from csi_job.study.record import read_record

    storage, work = loaded.settings.storage, loaded.settings.work
    return read_record(storage, work, name, or_only=or_only, to_continue=to_continue)


def next_command(loaded: LoadedSettings, *words: str) -> str:
    """Return a command about a study as a user would type it, with what the study does not know: places.

    If the words name a database, it is not that of this command.
    """
    settings, is_elsewhere = loaded.settings, "--storage" in words
    place = ["--work", str(settings.work)] if loaded.is_flag("work") else []
    files = {
        origin.removeprefix("file ")
        for path, origin in loaded.origins.items()
        if (path == "work" or (path.startswith("storage.") and not is_elsewhere)) and origin.startswith("file ")
    }
    if loaded.is_flag("storage.url") and not is_elsewhere:
        from csi_job.storage.url import database_address

        place += ["--storage", database_address(settings.storage, settings.work).argument]
    place += [word for file in files for word in ("--config", file)]
    if settings.trial.is_weights_file and words[0] in ("hyperopt", "train-optimized"):
        place += ["--pretrained", settings.trial.pretrained]
    return shlex.join(["csi-job", *words, *place])


def section_of(path: str) -> tuple[type[BaseModel], str]:
    """Return the section of a dotted path and the name of the field there."""
    section: type[BaseModel] = Settings
    *parents, name = path.split(".")
    for parent in parents:
        section = typing.cast("type[BaseModel]", section.model_fields[parent].annotation)
    return section, name


class _SettingOption(click.Option):
    """A flag for a setting; its help is put together only where it is shown."""

    def __init__(self, *args: Any, path: str, default_text: str, **kwargs: Any) -> None:
        self._path, self._default_text = path, default_text
        super().__init__(*args, **kwargs)

    def _help(self) -> str:
        section, name = section_of(self._path)
        default = section.model_fields[name].get_default(call_default_factory=True)
        words = "{}" if self._path in OF_A_CALL else self._default_text
        shown = "" if default in (None, "") else f"  [default: {words.format(default)}]"
        return f"{help_of(section, name).replace('`', '')}{shown}"

    help = property(_help, lambda *_: None)  # click sets it to nothing


def _option(path: str, default_text: str) -> Callable[[Any], Any]:
    section, name = section_of(path)
    options, kind, metavar = _kind(section.model_fields[name].annotation)
    return click.option(
        FLAGS[path],
        _destination(path),
        type=click.Choice(options) if options else kind,
        metavar=metavar,
        cls=_SettingOption,
        path=path,
        default_text=default_text,
    )


def _kind(annotation: Any) -> tuple[list[str], Any, str | None]:
    """Return the choices of a Literal, or the type behind `X | None` or `Literal["auto"] | int` and its metavar."""
    if typing.get_origin(annotation) is Literal:
        return [str(choice) for choice in typing.get_args(annotation)], str, None
    arguments = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
    plain = arguments[0] if arguments else annotation
    if typing.get_origin(plain) is Literal:
        return [], str, "|".join([*typing.get_args(plain), METAVARS[int]])
    return [], str if plain in (SecretStr, Path) else plain, METAVARS.get(plain, "TEXT")


def _destination(path: str) -> str:
    return path.replace(".", "__")


def _one_file(_: click.Context, __: click.Parameter, files: tuple[Path, ...]) -> Path | None:
    if len(files) > 1:
        named = " and ".join(map(str, files))
        raise click.BadParameter(f"give one file with all settings, got {named}")
    return files[0] if files else None


_config = click.option(
    "--config",
    multiple=True,  # click would take the last one without a word
    callback=_one_file,
    type=PathType(dir_okay=False),
    help="YAML settings file; `csi-job config init` writes one.",
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    envvar="CSI_JOB_LOG_FORMAT",
    help="Log as text or JSON lines; auto: JSON in a Kubernetes pod, otherwise text.",
)
