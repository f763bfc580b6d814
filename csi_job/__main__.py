"""The program `csi-job`, also `python -m csi_job`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line; a signal during its imports ends the process in one line."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a shell's background jobs
            signal.signal(number, _leave_at_once)
    _open_closed_streams()
    if os.environ.get("COLUMNS") == "0":  # of a terminal without a size: Rich would print nothing
        del os.environ["COLUMNS"]
    from csi_job.cli import main as run

    run()


def _open_closed_streams() -> None:
    """Let closed standard streams, as in `2>&-`, lead nowhere: the next files opened would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8"))


def _leave_at_once(number: int, _frame: object) -> None:
    # An exception could be taken for a failed import by C code, and there is nothing to clean up yet.
    os.write(2, b"csi-job: stopped; run the same command again to go on\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
