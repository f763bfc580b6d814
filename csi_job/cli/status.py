"""`csi-job status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from csi_job.cli.options import LoadedSettings, with_settings

if TYPE_CHECKING:
    from csi_job.terminal.release import ReleaseView


@click.command()
@with_settings("study.name", "storage.url")
@click.option("--watch", is_flag=True, help="Refresh until the study or release finishes (or Ctrl-C).")
@click.option(
    "--every", default=2.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds between refreshes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, one object per line and refresh.")
@click.option(
    "--release", envvar="RELEASE_NAME", metavar="NAME", help="Show this Kubernetes release: pods, trials, GPUs."
)
@click.option("--namespace", "-n", metavar="NAME", help="Its namespace; without --release: of the only release there.")
def status(
    loaded: LoadedSettings, *, watch: bool, every: float, as_json: bool, release: str | None, namespace: str | None
) -> None:
    """Show the study's trials by state, the best so far, the running ones, the rate and the time left.

    For a release on Kubernetes, also shows its pods and GPUs. Name it with --release or --namespace (and a
    kubeconfig); in the controller's pod neither is needed.
    """
    if release or namespace:
        _show_release(release, namespace, watch=watch, every=every, as_json=as_json)
        return
    from rich.console import Console
    from rich.live import Live

    from csi_job.study.status import study_status
    from csi_job.study.studies import open_study
    from csi_job.terminal.status import render_status, status_json

    settings = loaded.settings
    study = open_study(settings.storage, settings.work, settings.study.name)
    state = study_status(study)
    if as_json:
        click.echo(status_json(state))
        while watch and not state.is_finished:
            time.sleep(every)
            state = study_status(study)
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


def _show_release(release: str | None, namespace: str | None, *, watch: bool, every: float, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from csi_job.cluster.api import Cluster
    from csi_job.cluster.overview import watch_release
    from csi_job.terminal.release import release_json, render_release

    cluster = Cluster(namespace)
    if as_json:
        watch_release(cluster, release, lambda view: click.echo(release_json(view)), every_s=every, once=not watch)
    elif not watch:
        watch_release(cluster, release, lambda view: Console().print(render_release(view)), every_s=every, once=True)
    else:
        with Live(refresh_per_second=4) as live:

            def show(view: ReleaseView) -> None:
                live.update(render_release(view))

            watch_release(cluster, release, show, every_s=every)
