"""`csi-job phantoms`."""

from pathlib import Path

import click

from csi_job.cli.options import PathType, log_format_option
from csi_job.logs import LogFormat, set_up_logging


@click.command()
@click.argument("folder", type=PathType(file_okay=False))
@click.option("--num-images", type=click.IntRange(min=1), default=200, help="Number of images.")
@click.option("--seed", type=click.IntRange(min=0), default=42, help="Random seed.")
@log_format_option
def phantoms(folder: Path, num_images: int, seed: int, log_format: LogFormat) -> None:
    """Generate synthetic chest radiographs: FOLDER/labels.csv and FOLDER/images/.

    They resemble frontal radiographs with congestion in six zones, contain no patient data, are free to use,
    and cover the usual formats: PNG (8 and 16 bit), JPEG, DICOM and NIfTI.
    """
    from csi_job.phantoms.phantom import write_phantoms

    set_up_logging(log_format)
    write_phantoms(folder, num_images, seed)
    count = f"{num_images} phantom{'' if num_images == 1 else 's'}"
    click.echo(f"{count}; use with --labels {folder}/labels.csv --images {folder}/images")
