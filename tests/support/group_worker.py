"""A process for tests of `WorkerGroup`: it runs the code that its request has for this worker and this start of it."""

import logging
import os
import pickle
import signal
import sys
from pathlib import Path

from csi_job.errors import StopRequestedError
from csi_job.signals import listening
from csi_job.study.relay import ERROR, Relay, stop_with_parent


class Worker:
    def __init__(self, relay: Relay, number: int) -> None:
        self.relay, self.number = relay, number
        self.log = logging.getLogger("csi_job.toy")

    def epoch(self) -> None:
        self.relay.epoch(self.number, 0, {"val_f1": 0.5})

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self, message: str, code: int, *, ends_search: bool) -> None:
        self.relay.send(ERROR, message, code, ends_search)
        sys.exit(code)

    def run_until_stopped(self) -> None:
        """Run a trial until SIGTERM, then release it."""
        with listening() as stop:
            self.relay.trial_started(self.number, 1, {"pid": os.getpid()}, {})
            try:
                stop.wait(120)
            except StopRequestedError as error:
                self.relay.trial_ended(self.number, None)
                sys.exit(error.exit_code)

    def hang(self) -> None:
        """Run a trial that SIGTERM does not stop."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.relay.trial_started(self.number, 1, {"pid": os.getpid()}, {})
        signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own_relay = Relay.on_stdout()
    codes, folder = pickle.load(sys.stdin.buffer)
    stop_with_parent()
    logging.getLogger("csi_job").handlers, logging.getLogger("csi_job").level = [own_relay], logging.INFO
    own_number = int(os.environ["NUMBER"])
    starts = Path(folder) / os.environ["NUMBER"]
    with starts.open("a") as marks:
        marks.write("started\n")
    of_starts = codes[own_number]
    num_starts = len(starts.read_text().splitlines())
    exec(of_starts[min(num_starts, len(of_starts)) - 1], {"worker": Worker(own_relay, own_number), "os": os})
