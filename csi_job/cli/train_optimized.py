"""`csi-job train-optimized`."""

from pathlib import Path

import click

from csi_job.cli.options import DATA, PathType, next_command, study_of_hyperparams, with_settings
from csi_job.config import LoadedSettings
from csi_job.logs import announced

FINAL = ("final_model.num_candidates", "final_model.num_seeds", "final_model.seed", "final_model.max_epochs")


@click.command()
@with_settings(
    *DATA,
    *FINAL,
    "study.name",
    "storage.url",
    "trial.device",
    "trial.pretrained",
    study=study_of_hyperparams,
    default="the study's, else {}",
)
@click.option(
    "--hyperparams",
    type=PathType(dir_okay=False),
    help="JSON file of hyperparameters.  [default: <work>/models/hyperopt/<study>_best_params.json]",
)
def train_optimized(loaded: LoadedSettings, hyperparams: Path) -> None:
    """Retrain the best trials with several seeds, and export the winner as the final model.

    The top trial of a search is partly lucky. The best --candidates trials are therefore retrained with
    --seeds seeds each, and the one with the best mean wins. The baseline is trained the same way for a
    fair comparison. Finished trainings are kept: run the same command again to resume. Run it several
    times at once, e.g. with one GPU each, and the processes share the trainings.
    """
    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import run_train_optimized
    from csi_job.terminal.console import console
    from csi_job.terminal.final_model import render_final_model

    final = run_train_optimized(loaded.settings, hyperparams)
    console().print(render_final_model(final))
    click.echo(f"next: {next_command(loaded, 'evaluate', '--model-path', str(final.path))}")
