"""`csi-job study create | list | show | enqueue | delete`, and the commands of `study_files`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from csi_job.cli.hyperopt import STUDY
from csi_job.cli.options import DATA, text, with_settings
from csi_job.cli.study_files import copy, export, migrate
from csi_job.errors import ConfigurationError

if TYPE_CHECKING:
    from csi_job.config import LoadedSettings


@click.group()
def study() -> None:
    """Create, list, show, copy and delete studies; enqueue parameters to try next; export and migrate trials."""


for command in (copy, export, migrate):
    study.add_command(command)


@study.command()
@with_settings(*DATA, *STUDY)
def create(loaded: LoadedSettings) -> None:
    """Create the study and its baseline trial, without running any.

    The cache is built first if needed. A study that already exists is left as it is.
    """
    from csi_job.pipeline import define

    made, _ = define(loaded.settings)
    click.echo(f"study {made.study_name} is ready; to run its trials, use the same settings with: csi-job hyperopt")


@study.command("list")
@with_settings("storage.url")
def list_(loaded: LoadedSettings) -> None:
    """List the studies in the database."""
    from csi_job.storage.storage import open_storage
    from csi_job.study.studies import list_studies

    for listed in list_studies(open_storage(loaded.settings.storage, loaded.settings.work, create=False)):
        counts = listed.counts
        state = "created by another program"
        if counts is not None:
            state = f"{counts.num_finished} of {counts.target} trials, objective {listed.objective}"
        click.echo(f"{listed.name}: {state}")


@study.command()
@click.argument("name", type=text)
@with_settings("storage.url")
def show(loaded: LoadedSettings, name: str) -> None:
    """Show study NAME: its search space and all its trials."""
    from rich.console import Console

    from csi_job.study.studies import open_study
    from csi_job.terminal.trials import render_trials

    Console().print(render_trials(open_study(loaded.settings.storage, loaded.settings.work, name)))


@study.command()
@click.argument("name", type=text)
@click.argument("parameters", type=text, nargs=-1, required=True, metavar="PARAMETER=VALUE...")
@with_settings("storage.url")
def enqueue(loaded: LoadedSettings, name: str, parameters: tuple[str, ...]) -> None:
    """Enqueue a trial with these parameters in study NAME; the sampler chooses the rest.

    Example: csi-job study enqueue csi_optimization model_arch=Custom_1 learning_rate=3e-4
    """
    from csi_job.study.studies import enqueue_trial, open_study

    pairs = [parameter.partition("=") for parameter in parameters]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigurationError("parameters are given as PARAMETER=VALUE", got=key, hint="e.g. learning_rate=3e-4")
    params = {key: value for key, _, value in pairs}
    study = open_study(loaded.settings.storage, loaded.settings.work, name)
    number = enqueue_trial(study, loaded.settings.space, params)
    click.echo(f"enqueued trial {number} in study {name}; run it with: csi-job hyperopt --study-name {name}")


@study.command()
@click.argument("name", type=text)
@with_settings("storage.url")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(loaded: LoadedSettings, name: str, *, yes: bool) -> None:
    """Delete study NAME with its trials and checkpoints; models and reports are kept."""
    from csi_job.storage.storage import storage_of
    from csi_job.study.studies import delete_study, open_study

    doomed = open_study(loaded.settings.storage, loaded.settings.work, name)
    num_trials = len(doomed.get_trials(deepcopy=False))
    click.echo(f"study {name}: {num_trials} trials and their checkpoints; models and reports in models/ are kept")
    if not yes:
        click.confirm("Delete the study?", abort=True)
    delete_study(storage_of(doomed), name, loaded.settings.work)
    click.echo(f"deleted study {name}")
