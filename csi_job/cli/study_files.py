"""`csi-job study copy | export | migrate`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from pydantic import SecretStr

from csi_job.cli.options import DATA, text, with_settings
from csi_job.errors import ConfigurationError

if TYPE_CHECKING:
    from csi_job.config import LoadedSettings
    from csi_job.storage.settings import StorageSettings
    from csi_job.storage.storage import StudyStorage
    from csi_job.transfer.migrate import Migration

TO_PASSWORD: Final = "CSI_JOB_TO_PASSWORD"  # noqa: S105 - the name of a variable
TARGET_NAMES: Final = {
    "storage.url": "--to",
    "storage.password_file": "--to-password-file",
    "CSI_JOB_STORAGE__PASSWORD": TO_PASSWORD,
}
"""What errors call the settings of the storage when it is the target of a copy."""


@click.command()
@click.argument("name", type=text)
@click.option("--to", "url", type=text, required=True, metavar="URL", envvar="CSI_JOB_TO_URL",
    help="Database to copy to: sqlite:///FILE or postgresql+psycopg2://USER@HOST/DATABASE.")  # fmt: skip
@click.option("--to-password-file", "password_file", type=click.Path(path_type=Path), metavar="PATH",
    envvar="CSI_JOB_TO_PASSWORD_FILE", help=f"File with that database's password; or set {TO_PASSWORD}.")  # fmt: skip
@click.option("--as", "new_name", type=text, metavar="TEXT", help="Name of the copy.  [default: NAME]")
@with_settings("storage.url")
def copy(loaded: LoadedSettings, name: str, url: str, password_file: Path | None, new_name: str | None) -> None:
    """Copy study NAME into another database, completely or not at all; its workers may keep running.

    Everything in the database is copied: the definition, and every trial in any state with its
    attempts. Images, caches, checkpoints and models stay where they are. Missing tables are created.
    The copy's next worker resumes trials that are running: from their checkpoints if the copy has the
    same name and work folder, else from epoch 0. If it has, stop the original's workers first.

    \b
    For example, from a laptop's SQLite into a team's PostgreSQL, and back under another name:
      csi-job study copy csi_optimization --to postgresql+psycopg2://me@db.example.org/csi
      csi-job study copy csi_optimization --storage postgresql+psycopg2://me@db.example.org/csi \\
        --to sqlite:///studies.db --as from_team
    """  # noqa: D301 - click reads \b
    from optuna.trial import TrialState

    from csi_job.storage.attributes import outcome_of
    from csi_job.storage.storage import open_storage
    from csi_job.transfer.copy import copy_study

    settings = loaded.settings
    with (
        contextlib.closing(open_storage(settings.storage, settings.work, create=False)) as source,
        contextlib.closing(_open_target(settings.storage, settings.work, url, password_file)) as target,
    ):
        study = copy_study(source, name, target, new_name)
        trials = study.get_trials(deepcopy=False)
        outcomes = Counter(outcome_of(trial.state, trial.user_attrs) for trial in trials).most_common()
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
        renamed = f" as {study.study_name}" if study.study_name != name else ""
        click.echo(f"study {name} copied to {target.address}{renamed}: {len(trials)} trials ({counts})")
    if num_running := sum(trial.state is TrialState.RUNNING for trial in trials):
        start = "from its checkpoint if the work folder is the same" if study.study_name == name else "from epoch 0"
        click.echo(f"{num_running} of them were running: the copy's next worker resumes each, {start}")
    click.echo(
        f"to continue with the settings it was made with: csi-job hyperopt --study-name {shlex.quote(study.study_name)}"
    )


@click.command()
@click.argument("name", type=text)
@click.argument("dest", type=click.Path(path_type=Path), required=False)
@with_settings("storage.url")
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
    from csi_job.study.studies import open_study
    from csi_job.transfer.export import export_files, write_export

    settings = loaded.settings
    files = export_files(dest or settings.folder.hyperopt, name)
    check_free(*files, force=force)
    num_trials = write_export(open_study(settings.storage, settings.work, name), files)
    click.echo(f"{num_trials} trials of {name}: {', '.join(map(str, files))}")


@click.command()
@click.argument("old", type=text)
@click.argument("new", type=text)
@with_settings(*DATA, "study.num_trials", "study.objective", "study.seed", "storage.url")
def migrate(loaded: LoadedSettings, old: str, new: str) -> None:
    """Copy the finished trials of study OLD into study NEW, which may have a different search space.

    The current settings define NEW. A trial is copied if its hyperparameters lie in NEW's search space;
    the others are counted by reason. Everything but the space must match, since results with other
    data, splits, image sizes or objectives are not comparable. Copied trials count towards NEW's total,
    which is --n-trials or otherwise OLD's. OLD is not changed. Run the command again to copy trials
    that OLD has finished since.

    \b
    For example, after adding resnet18 to space.model_arch in wider.yaml:
      csi-job study migrate csi_optimization wider --config wider.yaml --n-trials 80
      csi-job hyperopt --study-name wider --config wider.yaml
    """  # noqa: D301 - click reads \b
    from csi_job.pipeline import migrate as run

    given = "study.num_trials" in loaded.origins
    done = run(loaded.settings, old, new, num_trials_given=given)
    for line in _migration_lines(done, old, new, given=given):
        click.echo(line)


def _open_target(source: StorageSettings, work: Path, url: str, password_file: Path | None) -> StudyStorage:
    """Open the target of a copy; errors call its settings by the names of its flags."""
    from csi_job.storage.settings import StorageSettings
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


def _migration_lines(done: Migration, old: str, new: str, *, given: bool) -> list[str]:
    there = f"; {done.num_there} were already there" if done.num_there else ""
    lines = [f"{done.num_carried} trials copied from {old} to {new}{there}"]
    lines += [f"{count} not copied: {reason}" for reason, count in done.reasons]
    hint = "" if given else " (change it with --n-trials)"
    waiting = f", {done.num_waiting} waiting" if done.num_waiting else ""
    lines.append(f"study {new} has {done.num_finished} of {done.target} trials{waiting}{hint}")
    more = " --more-trials K" if done.num_finished >= done.target else ""
    return [*lines, f"to continue with the same settings: csi-job hyperopt --study-name {shlex.quote(new)}{more}"]
