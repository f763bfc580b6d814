"""`csi-job eval` and `csi-job evaluate`."""

from pathlib import Path
from typing import Any

import click

from csi_job.cli.options import DATA, PathType, study_of_model, with_settings
from csi_job.config import LoadedSettings
from csi_job.logs import announced

MODEL = PathType(dir_okay=False)
SHOWN = (*DATA, "cache.normalisation", "evaluation.num_bootstrap", "storage.url", "trial.device")


@click.command("eval")
@with_settings(*SHOWN, study=study_of_model, default="the study's, else {}")
def eval(loaded: LoadedSettings) -> None:  # noqa: A001 - the command's name
    """Evaluate the final model on the test set.

    Prints every metric with its confidence interval, and writes metrics, predictions and plots to evaluation/ beside
    the study's final model.
    """
    _evaluate(loaded, compare=False)


@click.command()
@with_settings(*SHOWN, study=study_of_model, default="the study's, else {}")
@click.option(
    "--model-path",
    type=MODEL,
    help="Model to evaluate (.safetensors, .pth, .pt, .ckpt, .pth.tar).  "
    "[default: <work>/models/optimized_model.safetensors]",
)
@click.option("--model-arch", metavar="NAME", help="Architecture of a file without a model card.")
@click.option("--baseline", type=MODEL, help="Model to compare with.  [default: the baseline trained with the model]")
def evaluate(loaded: LoadedSettings, model_path: Path | None, model_arch: str | None, baseline: Path | None) -> None:
    """Evaluate a model and a baseline on the same test set.

    The differences between the two come with paired confidence intervals.
    """
    _evaluate(loaded, model_path, baseline, model_arch)


def _evaluate(loaded: LoadedSettings, *paths: Any, compare: bool = True) -> None:
    with announced("loading PyTorch and Optuna"):
        from csi_job.pipeline import run_evaluate
    from csi_job.terminal.console import console
    from csi_job.terminal.evaluation import render_run

    run = run_evaluate(loaded.settings, *paths, compare=compare)
    console().print(render_run(run))
    for path in run.files:
        click.echo(path)
