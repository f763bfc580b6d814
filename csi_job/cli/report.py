"""`csi-job report`."""

import click

from csi_job.cli.options import the_only_study, with_settings
from csi_job.config import LoadedSettings


@click.command()
@with_settings("study.name", "storage.url", study=the_only_study, reads_only=True, needs_database=True)
def report(loaded: LoadedSettings) -> None:
    """Write the study's plots, best parameters and one-page report to models/hyperopt/."""
    from csi_job.report.page.page import write_results
    from csi_job.study.studies import claim_results, open_study

    settings = loaded.settings
    study = open_study(settings.storage, settings.work, settings.study.name)
    claim_results(study, settings.folder)
    for path in write_results(study, settings.folder):
        click.echo(path)
