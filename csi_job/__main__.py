"""The program `csi-job`, also `python -m csi_job`."""

import os
import signal


def main() -> None:
    """Run the command line; a signal during its imports ends the process in one line."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a shell's background jobs
            signal.signal(number, _leave_at_once)
    from csi_job.cli import main as run

    run()


def _leave_at_once(number: int, _frame: object) -> None:
    # An exception could be taken for a failed import by C code, and there is nothing to clean up yet.
    os.write(2, b"csi-job: stopped\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
