"""`csi-job config show | init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csi_job.cli.options import FLAGS, PathType, study_of_argument, with_settings
from csi_job.config import LoadedSettings, commented_yaml, format_settings
from csi_job.files import check_free, write_file

if TYPE_CHECKING:
    from csi_job.study.record import StudyRecord


@click.group()
def config() -> None:
    """Show the current settings, or write a commented settings file."""


def _shown_study(loaded: LoadedSettings, given: dict[str, Any]) -> StudyRecord | None:
    new_or_old = loaded.settings.study.name if loaded.is_flag("study.name") else None
    return study_of_argument("study")(loaded, {"study": given["study"] or new_or_old})


@config.command()
@with_settings(
    *dict.fromkeys(path for path in FLAGS if not path.startswith(("final_model.seed", "final_model.max"))),
    study=_shown_study,
    check=False,
    reads_only=True,
)
@click.option("--study", metavar="NAME", help="Show the settings of this study.")
def show(loaded: LoadedSettings, study: str | None) -> None:
    """Print every setting, its current value, and the value's origin."""
    if study is not None and loaded.study is None:
        from csi_job.study.studies import open_study

        open_study(loaded.settings.storage, loaded.settings.work, study)  # says what is wrong
    click.echo(format_settings(loaded))


@config.command()
@click.argument("file", type=PathType(dir_okay=False), default=Path("csi-job.yaml"))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def init(file: Path, *, force: bool) -> None:
    """Write a YAML FILE with every setting and its explanation.

    The values are the defaults. FILE is csi-job.yaml unless you name another.
    """
    check_free(file, force=force)
    write_file(file, commented_yaml())
    click.echo(f"wrote {file}; use it with --config {file}")
