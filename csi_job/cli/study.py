"""`csi-job study list | show | delete | enqueue`."""

from __future__ import annotations

import click

from csi_job.cli.options import LoadedSettings, with_settings
from csi_job.errors import ConfigurationError


@click.group()
def study() -> None:
    """List, show and delete studies; enqueue parameters to try next."""


@study.command("list")
@with_settings("storage.url")
def list_(loaded: LoadedSettings) -> None:
    """List the studies of the storage."""
    from csi_job.pipeline import tell_studies

    click.echo(tell_studies(loaded.settings))


@study.command()
@click.argument("name")
@with_settings("storage.url")
def show(loaded: LoadedSettings, name: str) -> None:
    """Show NAME: what it searches, and its trials."""
    from csi_job.pipeline import tell_study

    click.echo(tell_study(loaded.settings, name))


@study.command()
@click.argument("name")
@with_settings("storage.url")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(loaded: LoadedSettings, name: str, *, yes: bool) -> None:
    """Delete NAME with its trials and checkpoints; models and reports stay."""
    from csi_job.pipeline import delete_study, tell_deletion

    click.echo(tell_deletion(loaded.settings, name))
    if not yes:
        click.confirm("Delete?", abort=True)
    delete_study(loaded.settings, name)
    click.echo(f"{name} is deleted")


@study.command()
@click.argument("name")
@click.argument("parameters", nargs=-1, required=True, metavar="NAME=VALUE...")
@with_settings("storage.url")
def enqueue(loaded: LoadedSettings, name: str, parameters: tuple[str, ...]) -> None:
    """Try these parameters next in study NAME; the sampler fills the rest.

    For example: csi-job study enqueue csi_optimization model_arch=Custom_1 learning_rate=3e-4
    """
    from csi_job.pipeline import enqueue_parameters

    pairs = [parameter.partition("=") for parameter in parameters]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigurationError("a parameter is written NAME=VALUE", got=key, hint="e.g. learning_rate=3e-4")
    number = enqueue_parameters(loaded.settings, name, {key: value for key, _, value in pairs})
    click.echo(f"trial {number} waits in {name}; the next `csi-job hyperopt` runs it")
