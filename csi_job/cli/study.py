"""`csi-job study create | list | show | enqueue | copy | export | migrate | delete`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from pydantic import SecretStr

from csi_job.cli.cache import finished_caches, show_cache
from csi_job.cli.hyperopt import STUDY
from csi_job.cli.options import DATA, PathType, next_command, study_of_argument, text, the_study, with_settings
from csi_job.config import LoadedSettings
from csi_job.errors import CONTROLS, ConfigurationError
from csi_job.logs import announced
from csi_job.storage.settings import StorageSettings

if TYPE_CHECKING:
    from csi_job.storage.storage import StudyStorage

TO_PASSWORD: Final = "CSI_JOB_TO_PASSWORD"  # noqa: S105 - the name of a variable
TARGET_NAMES: Final = {
    "storage.url": "--to",
    "storage.password_file": "--to-password-file",
    "CSI_JOB_STORAGE__PASSWORD": TO_PASSWORD,
}
"""What errors call the settings of the storage when it is the target of a copy."""


@click.group()
def study() -> None:
    """Create, list, show, copy and delete studies; enqueue parameters to try next; export and migrate trials."""


@study.command()
@with_settings(*DATA, *STUDY, study=the_study)
def create(loaded: LoadedSettings) -> None:
    """Create the study and its baseline trial, without running any.

    The cache is built first if needed. A study that already exists is left as it is.
    """
    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import define

    finished = finished_caches(loaded)
    made, cache = define(loaded.settings, loaded.study)
    show_cache(cache.folder, finished)
    search = next_command(loaded, "hyperopt", "--study-name", made.study_name)
    click.echo(f"study {made.study_name} is ready; run its trials with: {search}")


@study.command("list")
@with_settings("storage.url", reads_only=True, needs_database=True)
def list_(loaded: LoadedSettings) -> None:
    """List the studies in the database."""
    from csi_job.storage.storage import open_storage
    from csi_job.study.studies import list_studies

    for listed in list_studies(open_storage(loaded.settings.storage, loaded.settings.work, create=False)):
        counts = listed.counts
        state = "created by another program"
        if counts is not None:
            state = f"{counts.num_finished} of {counts.target} trials, objective {listed.objective}"
        click.echo(f"{listed.name.translate(CONTROLS)}: {state}")


@study.command()
@click.argument("name", type=text)
@with_settings("storage.url", reads_only=True, needs_database=True)
def show(loaded: LoadedSettings, name: str) -> None:
    """Show study NAME: its search space and all its trials."""
    from csi_job.study.studies import open_study
    from csi_job.terminal.console import console
    from csi_job.terminal.trials import render_trials

    console().print(render_trials(open_study(loaded.settings.storage, loaded.settings.work, name)))


@study.command()
@click.argument("name", type=text)
@click.argument("parameters", type=text, nargs=-1, required=True, metavar="PARAMETER=VALUE...")
@with_settings("storage.url", study=study_of_argument("name"))
@click.option("--raise-total", is_flag=True, help="Raise the study's total of trials if it leaves no room.")
def enqueue(loaded: LoadedSettings, name: str, parameters: tuple[str, ...], *, raise_total: bool) -> None:
    """Enqueue a trial with these parameters in study NAME.

    The sampler chooses the rest. For example:
    csi-job study enqueue csi_optimization model_arch=Custom_1 learning_rate=3e-4
    """
    from csi_job.study.studies import enqueue_trial, open_study

    pairs = [parameter.partition("=") for parameter in parameters]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigurationError("parameters are given as PARAMETER=VALUE", got=key, hint="e.g. learning_rate=3e-4")
    params = {key: value for key, _, value in pairs}
    if len(params) < len(pairs):
        raise ConfigurationError("a parameter is given twice", got=" ".join(parameters), hint="give each once")
    study = open_study(loaded.settings.storage, loaded.settings.work, name)
    number = enqueue_trial(study, loaded.settings.space, params, raise_total=raise_total)
    search = next_command(loaded, "hyperopt", "--study-name", name)
    click.echo(f"enqueued trial {number} in study {name}; run it with: {search}")


@study.command()
@click.argument("name", type=text)
@click.option("--to", "url", type=text, required=True, metavar="URL", envvar="CSI_JOB_TO_URL",
    help="Database to copy to: sqlite:///FILE or postgresql+psycopg2://USER@HOST/DATABASE.")  # fmt: skip
@click.option("--to-password-file", "password_file", type=PathType(), metavar="PATH",
    envvar="CSI_JOB_TO_PASSWORD_FILE", help=f"File with that database's password; or set {TO_PASSWORD}.")  # fmt: skip
@click.option("--as", "new_name", type=text, metavar="TEXT", help="Name of the copy.  [default: NAME]")
@with_settings("storage.url")
def copy(loaded: LoadedSettings, name: str, url: str, password_file: Path | None, new_name: str | None) -> None:
    """Copy study NAME into another database, completely or not at all.

    Its workers may keep running. Everything in the database is copied: the definition, and every trial in any
    state with its attempts. Images, caches, checkpoints and models stay where they are. Missing tables are
    created. The copy's next worker resumes trials that are running: from their checkpoints if the copy has the
    same name and work folder, else from epoch 1. If it has, stop the original's workers first.

    \b
    For example, from a laptop's SQLite into a team's PostgreSQL, and back under another name:
      csi-job study copy csi_optimization --to postgresql+psycopg2://me@db.example.org/csi
      csi-job study copy csi_optimization --storage postgresql+psycopg2://me@db.example.org/csi \\
        --to sqlite:///studies.db --as from_team
    """  # noqa: D301 - click reads \b
    from csi_job.storage.storage import open_storage
    from csi_job.transfer.copy import copy_study, summarize_copy

    settings = loaded.settings
    with (
        contextlib.closing(open_storage(settings.storage, settings.work, create=False)) as source,
        contextlib.closing(_open_target(settings.storage, settings.work, url, password_file)) as target,
    ):
        click.echo("\n".join(summarize_copy(copy_study(source, name, target, new_name), name)))
    there = ("--study-name", new_name or name, "--storage", target.address.argument)
    click.echo(f"to continue there: {next_command(loaded, 'hyperopt', *there)}")


@study.command()
@click.argument("name", type=text)
@click.argument("dest", type=PathType(), required=False)
@with_settings("storage.url", reads_only=True, needs_database=True)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def export(loaded: LoadedSettings, name: str, dest: Path | None, *, force: bool) -> None:
    """Export all trials of study NAME, in any state, as CSV and JSON.

    DEST is a folder for both files, or a single file ending in .csv or .json; the default is
    models/hyperopt/ in the work folder. The CSV opens in a spreadsheet, with one row per trial and one
    column per parameter. The JSON has everything, including values per epoch and study attributes.

    \b
    For example:
      csi-job study export csi_optimization
      csi-job study export csi_optimization trials.csv --force
    """  # noqa: D301 - click reads \b
    from csi_job.files import check_free
    from csi_job.html.format import plural
    from csi_job.study.studies import open_study
    from csi_job.transfer.export import export_files, write_export

    settings = loaded.settings
    files = export_files(dest or settings.folder.hyperopt, name)
    check_free(*files, force=force)
    num_trials = write_export(open_study(settings.storage, settings.work, name), files)
    click.echo(f"{plural(num_trials, 'trial')} of {name}: {', '.join(map(str, files))}")


@study.command()
@click.argument("old", type=text)
@click.argument("new", type=text)
@with_settings(
    *(*DATA, "study.num_trials", "study.objective", "study.seed", "storage.url"),
    study=study_of_argument("new", "old"),
    default="that of NEW or OLD",
)
def migrate(loaded: LoadedSettings, old: str, new: str) -> None:
    """Copy the finished trials of study OLD into study NEW.

    NEW may have a different search space, and has the settings of OLD, except for those that you give. A trial is
    copied if its hyperparameters lie in NEW's search space; the others are counted by reason. Everything but the
    space must match, since results with other data, splits, image sizes or objectives are not comparable. Copied
    trials count towards NEW's total, which is --n-trials or otherwise OLD's, and their epochs towards
    study.max_epochs_total. OLD is not changed. Run the command again to copy trials that OLD has finished since.

    \b
    For example, after adding resnet18 to space.model_arch in wider.yaml:
      csi-job study migrate csi_optimization wider --config wider.yaml --n-trials 80
      csi-job hyperopt --study-name wider
    """  # noqa: D301 - click reads \b
    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import migrate as run

    num_trials_given = loaded.is_given("study.num_trials")
    done = run(loaded.settings, old, new, num_trials_given=num_trials_given)
    hint = "" if num_trials_given else " (change it with --n-trials)"
    click.echo("\n".join(done.summary(old, new)) + hint)
    more = ["--more-trials", "K"] if done.num_finished >= done.target else []
    more += ["--max-epochs-total", "N"] if done.is_exhausted else []
    click.echo(f"to continue: {next_command(loaded, 'hyperopt', '--study-name', new, *more)}")


@study.command()
@click.argument("name", type=text)
@with_settings("storage.url")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(loaded: LoadedSettings, name: str, *, yes: bool) -> None:
    """Delete study NAME with its trials and checkpoints.

    Models and reports are kept.
    """
    from csi_job.html.format import plural
    from csi_job.study.studies import delete_study, open_study

    found = open_study(loaded.settings.storage, loaded.settings.work, name)
    trials = plural(len(found.get_trials(deepcopy=False)), "trial")
    click.echo(f"this deletes study {name} with {trials} and all checkpoints; models and reports in models/ are kept")
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigurationError("nobody can confirm this without a terminal", hint="delete the study with --yes")
        if not click.confirm("Delete the study?"):
            click.echo("nothing is deleted")
            raise click.exceptions.Exit(1)
    delete_study(found, loaded.settings.work)
    click.echo(f"deleted study {name}")


def _open_target(source: StorageSettings, work: Path, url: str, password_file: Path | None) -> StudyStorage:
    """Open the target of a copy; errors call its settings by the names of its flags."""
    from csi_job.storage.storage import open_storage

    password = os.environ.get(TO_PASSWORD)
    settings = StorageSettings(
        url=SecretStr(url),
        password=None if password is None else SecretStr(password),
        password_file=password_file,
        connect_s=source.connect_s,
        outage_s=source.outage_s,
    )
    try:
        return open_storage(settings, work, create=True)
    except ConfigurationError as error:
        message = str(error)
        for name, flag in TARGET_NAMES.items():
            message = message.replace(name, flag)
        raise ConfigurationError(message) from None
