"""The command line: thin commands over the library."""

import errno
import gc
import io
import os
import signal
import sys
import threading
from importlib import import_module
from typing import Final, NoReturn

import click

from csi_job.errors import CsiJobError, DataError, StopRequestedError, advice
from csi_job.signals import handled_signals

SEND_AGAIN_S: Final = 0.1
STOPPED: Final = "stopped; run the same command again to go on"
START_UP_OBJECTS: Final = 1_000_000  # more than imports make, of which none is garbage
# In the order of use; a command's module is imported only to run the command or show its help.
COMMANDS = {
    "phantoms": ("phantoms", "Generate synthetic chest radiographs to try everything out."),
    "config": ("config", "Show the current settings, or write a commented settings file."),
    "cache": ("cache", "Decode, check and split the radiographs, once."),
    "hyperopt": ("hyperopt", "Search for the best hyperparameters."),
    "status": ("status", "Show the progress of a study."),
    "study": ("study", "Create, list, show, copy, export and delete studies; enqueue trials."),
    "report": ("report", "Write the plots and the report of a study."),
    "train-optimized": ("train_optimized", "Retrain the best trials with several seeds and export the winner."),
    "eval": ("evaluate", "Evaluate the final model on the test set."),
    "evaluate": ("evaluate", "Evaluate any model on the test set and compare it with a baseline."),
    "predict": ("predict", "Score new radiographs with a model."),
    "steps": ("steps", "Run several of these commands in one process."),
    "cluster": ("cluster", "Work with a release on Kubernetes: check, scale, fetch results."),
}


class _LazyGroup(click.Group):
    """Lists the commands without importing them, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"csi_job.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; if there is none, name those of groups that are called so."""
        if args[0] not in COMMANDS:
            groups = ((name, self.get_command(ctx, name)) for name in COMMANDS)
            meant = [f"'{name} {args[0]}'" for name, group in groups if args[0] in getattr(group, "commands", ())]
            if meant:
                ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(meant)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands, in the order of use"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


@click.group(cls=_LazyGroup, commands=dict.fromkeys(COMMANDS), context_settings=CONTEXT)  # for "did you mean"
@click.version_option(package_name="csi-job")
def cli() -> None:
    """Find and train the best model for your chest radiographs.

    \b
    From a label table and a folder of images to a trained and evaluated model:
      csi-job cache build     --labels labels.csv --images images/
      csi-job hyperopt        --labels labels.csv --images images/ --n-trials 50
      csi-job train-optimized
      csi-job evaluate

    Every setting can be given as an environment variable (CSI_JOB_STUDY__NUM_TRIALS=50) or in a YAML file (--config),
    the common ones also as flags. `csi-job config show` lists them all.

    Exit codes: 0 success; 1 error (run the same command again to resume); 2 invalid input or settings; 3 too many
    failed trials; 130 or 143 stopped by a signal.
    """  # noqa: D301 - click reads \b


def main() -> None:
    """Run the command line; an error becomes one line on standard error and the exit code of its class."""
    gc.set_threshold(START_UP_OBJECTS, 20, 20)
    received = _receive_signals()
    if isinstance(sys.stdout, io.TextIOWrapper) and (sys.stdout.errors == "strict" or sys.stdout.encoding != "utf-8"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale's encoding may lack a minus sign
    try:
        code = cli.main(prog_name="csi-job", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:  # `csi-job`, `csi-job study`
        click.echo(error.ctx.get_help())
        _leave("", 0)
    except click.exceptions.Abort:
        _leave(STOPPED, 130)
    except click.ClickException as error:
        usage = f"; see: {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        _leave(f"{' '.join(error.format_message().split()).rstrip('.')}{usage}", 2)
    except StopRequestedError as error:
        _leave(str(error), error.exit_code)
    except CsiJobError as error:
        identities = sys.stderr.isatty()  # logs name no patients
        _leave(error.render(identities=identities) if isinstance(error, DataError) else str(error), error.exit_code)
    except OSError as error:
        hint = {
            errno.EACCES: "grant this user access, or name another path",
            errno.EROFS: "choose a writable folder with --work",
            errno.ENAMETOOLONG: "name another path",
        }.get(error.errno or 0, "check the path and run the same command again")
        place = f" ({str(error.filename)[:200]})" if error.filename else ""
        code = 2 if error.errno == errno.ENAMETOOLONG else 1
        _leave(f"{error.strerror or error}{place}; {advice(error) or hint}", code)
    except Exception:
        if not received:
            raise
        _leave(STOPPED, 128 + received[0])  # C code, such as pydantic's, may make any error of it
    _leave("", code if isinstance(code, int) else 0)


def _receive_signals() -> list[int]:
    """Let the first signal raise, and a second Ctrl-C end the process at once; return the list of those received.

    Python drops what is raised in a finalizer or a callback of a weak reference, of which imports have many. Such a
    signal is sent again.
    """
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise StopRequestedError(number) if number == signal.SIGTERM else KeyboardInterrupt
        if number == signal.SIGINT:
            os._exit(128 + received[0])

    def on_dropped(dropped: "sys.UnraisableHookArgs") -> None:
        if received and isinstance(dropped.exc_value, (StopRequestedError, KeyboardInterrupt)):
            main_thread = threading.main_thread().ident  # a signal to another would wake it from no sleep
            again = threading.Timer(SEND_AGAIN_S, signal.pthread_kill, [main_thread, received[0]])
            again.daemon = True
            again.start()
            received.clear()
        else:
            sys.__unraisablehook__(dropped)

    sys.unraisablehook = on_dropped
    for number in handled_signals():
        signal.signal(number, receive)
    return received


def _leave(message: str, code: int) -> NoReturn:
    for number in handled_signals():
        signal.signal(number, signal.SIG_DFL)  # an exception in an exit handler would be shown as a traceback
    if message:
        click.echo(f"csi-job: {message}", err=True)
    if "triton" not in sys.modules:  # which would report everything that is left as leaked
        gc.freeze()  # else the interpreter's last collections search everything that was imported for garbage
    sys.exit(code)
