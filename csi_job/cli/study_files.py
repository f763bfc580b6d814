"""`csi-job study export | backup | restore | migrate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csi_job.cli.options import DATA, text, with_settings

if TYPE_CHECKING:
    from csi_job.config import LoadedSettings
    from csi_job.transfer.backup_file import Backup
    from csi_job.transfer.migrate import Migration

FORCE = click.option("--force", is_flag=True, help="Overwrite existing files.")
FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.argument("name", type=text)
@click.argument("dest", type=click.Path(path_type=Path), required=False)
@with_settings("storage.url")
@FORCE
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
    from csi_job.storage.storage import open_storage
    from csi_job.transfer.backup import read_backup
    from csi_job.transfer.export import export_files, write_export

    settings = loaded.settings
    files = export_files(dest or settings.folder.hyperopt, name)
    check_free(*files, force=force)
    study = read_backup(open_storage(settings.storage, settings.work, create=False), name)
    write_export(study, files)
    click.echo(f"{len(study.trials)} trials of {name}: {', '.join(map(str, files))}")


@click.command()
@click.argument("name", type=text)
@click.argument("file", type=FILE)
@with_settings("storage.url")
@FORCE
def backup(loaded: LoadedSettings, name: str, file: Path, *, force: bool) -> None:
    """Write study NAME as it is now into one FILE; workers go on meanwhile.

    Nothing is lost or rounded, and a checksum tells a damaged file. A name that ends in .gz is
    compressed; - is standard output. Images, caches, checkpoints and models are not in it.

    \b
    For example, from the laptop's SQLite into a team's PostgreSQL:
      csi-job study backup csi_optimization study.json.gz
      csi-job study restore study.json.gz --storage postgresql+psycopg2://me@db.example.org/csi
    """  # noqa: D301 - click reads \b
    from csi_job.files import STREAM, check_free
    from csi_job.storage.storage import open_storage
    from csi_job.transfer.backup import read_backup, write_backup

    check_free(file, force=force)
    study = read_backup(open_storage(loaded.settings.storage, loaded.settings.work, create=False), name)
    write_backup(study, file)
    click.echo(f"study {name} is in {file}: {_counts(study)}", err=file == STREAM)


@click.command()
@click.argument("file", type=FILE)
@with_settings("storage.url")
@click.option("--study-name", "new_name", metavar="TEXT", help="Another name for the study.  [default: as it was]")
def restore(loaded: LoadedSettings, file: Path, new_name: str | None) -> None:
    """Bring the study in FILE, which `backup` wrote, into a database, whole or not at all.

    The database may be another, and of another kind; its tables are made where they are missing. A
    trial that ran during the backup is taken over by the next worker: from its checkpoint if the work
    folder and the study's name are the same, else from epoch 0. End the workers of the first study
    before, if both share a work folder and a name. FILE may be -, which is standard input.

    \b
    For example:
      csi-job study restore study.json.gz --storage postgresql+psycopg2://me@db.example.org/csi
      csi-job study restore study.json.gz --study-name second_try
    """  # noqa: D301 - click reads \b
    from optuna.trial import TrialState

    from csi_job.files import read_file
    from csi_job.storage.storage import open_storage
    from csi_job.study.settings import checked_name
    from csi_job.transfer.backup import restore_backup
    from csi_job.transfer.backup_file import decode

    study = decode(read_file(file))
    name = checked_name(new_name or study.name)
    restore_backup(open_storage(loaded.settings.storage, loaded.settings.work, create=True), study, name)
    click.echo(f"study {name} is restored: {_counts(study)}")
    if num_running := study.num_in(TrialState.RUNNING):
        where = "from its checkpoint, if the work folder is the same" if name == study.name else "from epoch 0"
        click.echo(f"{num_running} ran during the backup: the next worker takes each over, {where}")
    click.echo(f"go on with the settings it was made with: csi-job hyperopt --study-name {shlex.quote(name)}")


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


def _counts(study: Backup) -> str:
    from csi_job.transfer.backup import count_outcomes

    counts = count_outcomes(study)
    return f"{len(study.trials)} trials ({', '.join(f'{count} {outcome}' for outcome, count in counts)})"


def _migration_lines(done: Migration, old: str, new: str, *, given: bool) -> list[str]:
    there = f"; {done.num_there} were already there" if done.num_there else ""
    lines = [f"{done.num_carried} trials copied from {old} to {new}{there}"]
    lines += [f"{count} not copied: {reason}" for reason, count in done.reasons]
    whose = "" if given else " (change it with --n-trials)"
    waiting = f", {done.num_waiting} waiting" if done.num_waiting else ""
    lines.append(f"study {new} has {done.num_finished} of {done.target} trials{waiting}{whose}")
    more = " --more-trials K" if done.num_finished >= done.target else ""
    return [*lines, f"to continue with the same settings: csi-job hyperopt --study-name {shlex.quote(new)}{more}"]
