"""`csi-job status`."""

from __future__ import annotations

import time

import click

from csi_job.cli.options import LoadedSettings, with_settings


@click.command()
@with_settings("study.name", "storage.url")
@click.option("--watch", is_flag=True, help="Refresh until the study is finished or Ctrl-C.")
@click.option("--every", default=2.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds between looks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(loaded: LoadedSettings, *, watch: bool, every: float, as_json: bool) -> None:
    """Show trials by state, the best so far, what runs now, the rate and the time left."""
    from rich.console import Console
    from rich.live import Live

    from csi_job.report.status import render_status, status_json
    from csi_job.study.catalog import open_study
    from csi_job.study.status import study_status

    settings = loaded.settings
    study = open_study(settings.storage, settings.work, settings.study.name)
    state = study_status(study)
    if as_json:
        click.echo(status_json(state))
        return
    if not watch:
        Console().print(render_status(state))
        return
    with Live(render_status(state), refresh_per_second=4) as live:
        while not state.is_finished:
            time.sleep(every)
            state = study_status(study)
            live.update(render_status(state))
