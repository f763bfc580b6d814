"""`csi-job hyperopt`."""

import click

from csi_job.cli.options import DATA, next_command, the_study, with_settings
from csi_job.config import LoadedSettings
from csi_job.errors import ConfigurationError
from csi_job.logs import announced

STUDY = (
    "study.name",
    "study.num_trials",
    "study.max_epochs",
    "study.max_epochs_total",
    "study.sampler",
    "study.num_startup_trials",
    "study.pruner",
    "study.objective",
    "study.seed",
    "study.timeout_s",
    "study.workers",
    "storage.url",
    "tracking.wandb_project",
    "trial.device",
    "trial.pretrained",
    "final_model.num_candidates",
    "final_model.num_seeds",
)


@click.command()
@with_settings(*DATA, *STUDY, study=the_study)
@click.option("--more-trials", type=click.IntRange(min=1), metavar="K",
    help="Add K trials to the total; until they are finished, the same option adds no more.")  # fmt: skip
@click.option("--confirm", is_flag=True,
    help="When the trials are done, also do the trainings of train-optimized, shared by all workers.")  # fmt: skip
@click.option("--report/--no-report", default=True, help="Write plots and report at the end; `report` does so later.")
def hyperopt(loaded: LoadedSettings, more_trials: int | None, *, confirm: bool, report: bool) -> None:
    """Search for the best hyperparameters, building the cache first if needed.

    --n-trials is the exact TOTAL number of finished trials in the study, shared by every process that
    runs this command on the same database. An existing study is continued, with its own settings where
    none are given. After Ctrl-C or a crash, run exactly the same command again, even with --more-trials:
    at most one epoch is lost, or one minute of shorter ones, and nothing is added twice.
    """
    if more_trials is not None and loaded.is_flag("study.num_trials"):
        raise ConfigurationError("--n-trials sets the total and --more-trials adds to it; give one of them")
    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import run_hyperopt
    from csi_job.study.status import study_status
    from csi_job.terminal.console import console
    from csi_job.terminal.status import render_status

    study = run_hyperopt(loaded, more_trials=more_trials, confirm=confirm, report=report)
    status = study_status(study)
    console().print(render_status(status))
    if not report:
        return
    best = loaded.settings.folder.best_params(study.study_name)
    click.echo(f"plots and report: {best.parent}")
    if status.best:  # else the file, if any, is of an earlier study
        click.echo(f"next: {next_command(loaded, 'train-optimized', '--hyperparams', str(best))}")
