"""`csi-job predict`."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import click

from csi_job.cli.options import PathType, with_settings
from csi_job.config import LoadedSettings
from csi_job.errors import ConfigurationError, explain_os_errors
from csi_job.files import exists, is_file, real_path, replacing_unlocked
from csi_job.logs import announced

FORM = ("image_size_px", "normalisation")  # what a model card says of the images
CSI_NOTE = (
    "csi: expected CSI, from the probabilities of the zones' scores; "
    "mean_score: mean of the zones' most probable scores; "
    "risk: the class of csi, which near a limit need not be the most probable one"
)


@click.command()
@click.argument("images", nargs=-1, required=True, type=PathType())
@with_settings("trial.device", *(f"cache.{name}" for name in FORM), default="the model card's")
@click.option(
    "--model-path",
    type=PathType(dir_okay=False),
    help="Model to use.  [default: <work>/models/optimized_model.safetensors]",
)
@click.option("--model-arch", metavar="NAME", help="Architecture of a file without a model card.")
@click.option("--output", type=PathType(dir_okay=False), help="File to write.  [default: standard output]")
@click.option("--format", "output_format", type=click.Choice(["csv", "json"]), default="csv", help="Output format.")
def predict(
    loaded: LoadedSettings,
    images: tuple[Path, ...],
    model_path: Path | None,
    model_arch: str | None,
    output: Path | None,
    output_format: Any,
) -> None:
    """Score IMAGES (files or folders): six zones, mean CSI, and risk class with probabilities.

    `csi` is the expected CSI: each zone that the model finds gradable contributes its expected score, the average of
    the scores 0 to 3 weighted by their probabilities. `mean_score` averages the zones' most probable scores instead,
    which are the ones printed.

    Unreadable files are reported and skipped; the exit code is then 1. A model file without a card needs
    --model-arch, --image-size and --normalisation.
    """
    with announced("loading PyTorch"):
        from csi_job.prediction import run_predict

    with contextlib.ExitStack() as stack:
        with explain_os_errors("the predictions cannot be written", output, kind=ConfigurationError):
            stream = stack.enter_context(_open(output))
        problems = run_predict(
            loaded.settings,
            images,
            model_path,
            stream,
            output_format,
            architecture=model_arch,
            **{name: getattr(loaded.settings.cache, name) for name in FORM if loaded.is_given(f"cache.{name}")},
        )
    click.echo(CSI_NOTE, err=True)
    for problem in problems:
        click.echo(f"csi-job: {problem.render(identities=True)}", err=True)
    if problems:
        click.get_current_context().exit(1)


@contextlib.contextmanager
def _open(output: Path | None) -> Iterator[TextIO]:
    """Open a file that gets its name when it is complete, or what is no file: a device, a pipe, standard output."""
    if output is None or (exists(output) and not is_file(output)):
        with click.open_file(str(output or "-"), "w", encoding="utf-8") as stream:
            yield cast("TextIO", stream)
        return
    target = real_path(output)
    with replacing_unlocked(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        if exists(target):
            shutil.copymode(target, temporary)
        yield file
