"""`csi-job hyperopt`."""

from __future__ import annotations

import shlex

import click

from csi_job.cli.options import DATA, LoadedSettings, with_settings

STUDY = (
    "study.name",
    "study.num_trials",
    "study.max_epochs",
    "study.sampler",
    "study.num_startup_trials",
    "study.pruner",
    "study.objective",
    "study.seed",
    "study.timeout_s",
    "storage.url",
    "tracking.wandb_project",
    "trial.device",
    "trial.pretrained",
)


@click.command()
@with_settings(*DATA, *STUDY)
@click.option("--more-trials", type=click.IntRange(min=1), metavar="K", help="Raise the study's total by K.")
def hyperopt(loaded: LoadedSettings, more_trials: int | None) -> None:
    """Search for the best hyperparameters; builds the cache first where it is missing.

    --n-trials is the TOTAL of finished trials of the study, shared by every process that runs this
    command on the same storage, and exact. A study that exists is continued. Ctrl-C or a kill loses
    at most one epoch: run the same command again.
    """
    from rich.console import Console

    from csi_job.pipeline import best_params_file, run_hyperopt
    from csi_job.study.status import study_status
    from csi_job.terminal.status import render_status

    given = "study.num_trials" in loaded.origins
    study = run_hyperopt(loaded.settings, num_trials_given=given, more_trials=more_trials)
    Console().print(render_status(study_status(study)))
    best = best_params_file(study, loaded.settings.work)
    click.echo(f"plots and report: {best.parent}")
    if best.is_file():
        click.echo(f"next: csi-job train-optimized --hyperparams {shlex.quote(str(best))} (and the same --work)")
