"""`csi-job config show | init`."""

from pathlib import Path

import click

from csi_job.cli.options import FLAGS, study_of_argument, with_settings
from csi_job.config import LoadedSettings
from csi_job.files import check_free, write_file


@click.group()
def config() -> None:
    """Show the current settings, or write a commented settings file."""


@config.command()
@with_settings(
    *dict.fromkeys(path for path in FLAGS if not path.startswith(("final_model.seed", "final_model.max"))),
    study=study_of_argument("study"),
    check=False,
    reads_only=True,
)
@click.option("--study", metavar="NAME", help="Show the settings of this study.")
def show(loaded: LoadedSettings, study: str | None) -> None:
    """Print every setting, its current value, and the value's origin."""
    from csi_job.config import format_settings

    if study is not None and loaded.study is None:
        from csi_job.study.studies import open_study

        open_study(loaded.settings.storage, loaded.settings.work, study)  # says what is wrong
    click.echo(format_settings(loaded))


@config.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=Path("csi-job.yaml"))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def init(file: Path, *, force: bool) -> None:
    """Write a YAML FILE with every setting and its explanation.

    The values are the defaults. FILE is csi-job.yaml unless you name another.
    """
    from csi_job.config import commented_yaml

    check_free(file, force=force)
    write_file(file, commented_yaml())
    click.echo(f"wrote {file}; use it with --config {file}")
