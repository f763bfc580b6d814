"""`csi-job status`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from csi_job.cli.options import SecondsType, the_only_study, with_settings
from csi_job.config import LoadedSettings
from csi_job.errors import NoStudyError

if TYPE_CHECKING:
    import optuna
    from rich.console import RenderableType

    from csi_job.study.status import StudyStatus


@click.command()
@with_settings(
    "study.name",
    "storage.url",
    study=lambda loaded, given: None if given["release"] or given["namespace"] else the_only_study(loaded, given),
    reads_only=True,
)
@click.option("--watch", is_flag=True, help="Refresh until the study or release finishes (or Ctrl-C).")
@click.option("--every", default=2.0, type=SecondsType(0.2), help="Seconds between refreshes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, one object per line and refresh.")
@click.option(
    "--release",
    default=lambda: os.environ.get("RELEASE_NAME") if "RELEASE_STAGES" in os.environ else None,  # in a controller's pod
    show_default=False,
    metavar="NAME",
    help="Show this Kubernetes release: pods, trials, GPUs.",
)
@click.option("--namespace", "-n", metavar="NAME", help="Its namespace; without --release, show the only one there.")
def status(
    loaded: LoadedSettings, *, watch: bool, every: float, as_json: bool, release: str | None, namespace: str | None
) -> None:
    """Show the study's trials by state, the best so far, the running ones, the rate and the time left.

    For a release on Kubernetes, also shows its pods and GPUs. Name it with --release or --namespace (and a
    kubeconfig); in the controller's pod neither is needed.
    """
    if release or namespace:
        from csi_job.cluster.api import Cluster
        from csi_job.cluster.overview import watch_release
        from csi_job.terminal.release import release_json, render_release

        with _display(render_release, release_json, watch=watch, as_json=as_json) as show:
            watch_release(Cluster(namespace), release, show, every_s=every, once=not watch)
        return
    from csi_job.study.status import study_status
    from csi_job.study.studies import open_study
    from csi_job.terminal.status import render_status, status_json

    settings = loaded.settings
    opened = partial(open_study, settings.storage, settings.work, settings.study.name)
    # A program that reads JSON retries by itself: `status --release` does.
    study = _wait_for_study(opened, every) if watch and not as_json else opened()
    model = settings.folder.final(settings.study.name).optimized_model

    def render(state: StudyStatus) -> RenderableType:
        return render_status(state, has_model=os.path.isfile(model))  # noqa: PTH113 - raises nothing

    with _display(render, status_json, watch=watch, as_json=as_json) as show:
        show(state := study_status(study))
        while watch and not state.is_finished:
            time.sleep(every)
            show(state := study_status(study))


def _wait_for_study(opened: Callable[[], optuna.Study], every_s: float) -> optuna.Study:
    is_announced = False
    while True:
        try:
            return opened()
        except NoStudyError as error:
            if not is_announced:
                click.echo(f"{error}; waiting for it", err=True)
            is_announced = True
            time.sleep(every_s)


@contextmanager
def _display(
    render: Callable[[Any], RenderableType], to_json: Callable[[Any], str], *, watch: bool, as_json: bool
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that shows a state: as a line of JSON, as a table, or in place of the state before it."""
    from rich.live import Live

    from csi_job.terminal.console import console

    if as_json:
        yield lambda state: click.echo(to_json(state))
    elif not watch:
        yield lambda state: console().print(render(state))
    else:
        with Live(console=console(), refresh_per_second=4) as live:
            yield lambda state: live.update(render(state))
