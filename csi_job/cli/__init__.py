"""The command line: thin commands over the library."""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module

import click

from csi_job.errors import CsiJobError, DataError, StopRequestedError

# In the order of use; a command's module is imported only when it runs or shows its help.
COMMANDS = {
    "phantoms": ("phantoms", "Make a folder of chest phantoms to try everything with."),
    "config": ("config", "Show the settings in force, or write a commented file of them."),
    "cache": ("cache", "Decode the radiographs once, check and split them."),
    "hyperopt": ("hyperopt", "Search for the best hyperparameters."),
    "status": ("status", "Show how far a study is."),
    "study": ("study", "List, show, delete, export, back up studies; enqueue parameters."),
    "report": ("report", "Write the plots and the report of a study."),
    "train-optimized": ("train_optimized", "Confirm the best candidates and train the final model."),
    "eval": ("evaluate", "Evaluate the optimised model on the test set."),
    "evaluate": ("evaluate", "Evaluate any model, compared with a baseline, on the test set."),
    "predict": ("predict", "Score new radiographs with a model."),
    "cluster": ("cluster", "Run on Kubernetes: scale, check, fetch the results."),
}


class _LazyGroup(click.Group):
    """Lists every command without importing it, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"csi_job.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands, in the order of use"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="csi-job")
def cli() -> None:
    """Find the best model that a folder of chest radiographs allows.

    \b
    From a label table and images to a trained, evaluated model:
      csi-job cache build     --labels labels.csv --images images/
      csi-job hyperopt        --labels labels.csv --images images/ --n-trials 50
      csi-job train-optimized --hyperparams models/hyperopt/csi_optimization_best_params.json
      csi-job eval

    Every setting is a flag, a variable (CSI_JOB_STUDY__NUM_TRIALS=50) or a line of a YAML file
    (--config); `csi-job config show` prints them all. Each command has its own --help.

    Exit codes: 0 done; 1 an error, the same command goes on where it ended; 2 a mistake in what was given; 3 too many
    trials failed; 130 and 143 stopped by a signal.
    """  # noqa: D301 - click reads \b


def main() -> None:
    """Run the command line; an error is one line on standard error and the exit code of its class."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _stop)  # as the first process of a container, SIGTERM would do nothing
    try:
        code = cli.main(prog_name="csi-job", standalone_mode=False)
    except click.exceptions.Abort:
        _leave("stopped", 130)
    except click.ClickException as error:
        usage = f"; see: {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        _leave(f"{' '.join(error.format_message().split()).rstrip('.')}{usage}", 2)
    except CsiJobError as error:
        identities = sys.stderr.isatty()
        _leave(error.render(identities=identities) if isinstance(error, DataError) else str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no second complaint when Python flushes
        sys.exit(141)
    except OSError as error:
        _leave(_file_trouble(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(number: int, _frame: object) -> None:
    raise StopRequestedError(number)


def _leave(message: str, code: int) -> None:
    click.echo(f"csi-job: {message}", err=True)
    sys.exit(code)


def _file_trouble(error: OSError) -> str:
    advice = {
        errno.ENOSPC: "free some space and run the same command again; it goes on where it stopped",
        errno.EACCES: "give this user the right to it, or choose another folder with --work",
        errno.EROFS: "choose a writable folder with --work",
    }.get(error.errno or 0, "check the path and run the same command again")
    place = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{place}; {advice}"
