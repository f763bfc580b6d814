"""`csi-job steps`."""

import itertools
import logging
import os

import click

from csi_job.cli.options import log_format_option
from csi_job.errors import CsiJobError, StopRequestedError
from csi_job.logs import LogFormat, set_up_logging

logger = logging.getLogger(__name__)
THEN = "then"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@log_format_option
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [then COMMAND]...")
@click.pass_context
def steps(context: click.Context, words: tuple[str, ...], log_format: LogFormat) -> None:
    """Run commands one after the other in this process, up to the first that fails.

    PyTorch and Optuna are imported once instead of by every command. Nothing runs if one of them has an unknown
    name or option.

    \b
    csi-job steps report then train-optimized --hyperparams best.json then evaluate
    """  # noqa: D301 - click reads \b
    set_up_logging(log_format)
    os.environ["CSI_JOB_LOG_FORMAT"] = log_format  # for all of them
    chosen = _parse(context.find_root(), words)
    for number, step in enumerate(chosen, start=1):
        values = {"number": number, "steps": len(chosen), "step": step.info_name}
        logger.info("step %(number)d of %(steps)d: %(step)s", values)
        try:
            with step:
                step.command.invoke(step)
        except (CsiJobError, StopRequestedError) as error:
            error.args = (f"{step.info_name}: {error}",)
            raise


def _parse(root: click.Context, words: tuple[str, ...]) -> list[click.Context]:
    commands = [list(command) for is_then, command in itertools.groupby(words, THEN.__eq__) if not is_then]
    if len(commands) != words.count(THEN) + 1:
        raise click.UsageError(f"a command must stand before and after each {THEN!r}")
    assert isinstance(root.command, click.Group)
    contexts = []
    for name, *arguments in commands:
        _, command, _ = root.command.resolve_command(root, [name])
        assert command is not None
        contexts.append(command.make_context(name, arguments, parent=root))
    return contexts
