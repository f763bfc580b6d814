"""`csi-job hyperopt`."""

from __future__ import annotations

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
    from csi_job.pipeline import run_hyperopt, tell_best

    given = "study.num_trials" in loaded.origins
    study = run_hyperopt(loaded.settings, num_trials_given=given, more_trials=more_trials)
    click.echo(tell_best(study, loaded.settings.work))
