"""Signals become requests that are looked at where stopping is safe."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from csi_job.errors import StopRequestedError
from csi_job.signals import Stop, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_seen_at_the_next_look(number):
    before = signal.getsignal(number)
    with listening() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequestedError) as caught:
            stop.check()
        assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a shell's background job
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            stop.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_gives_the_exit_code():
    stop = Stop()
    stop.request(signal.SIGTERM)
    stop.request(signal.SIGTERM)
    assert stop.signal_number == signal.SIGTERM


def test_nobody_sleeps_through_a_request():
    stop = Stop()
    threading.Timer(0.1, stop.request, (signal.SIGTERM,)).start()
    for _ in range(2):
        with pytest.raises(StopRequestedError):
            stop.wait(3600)


def test_a_signal_at_any_moment_of_a_wait_does_not_deadlock():
    code = (
        "import os, signal, threading\nfrom csi_job.errors import StopRequestedError\n"
        "from csi_job.signals import listening\n"
        "def send():\n    for _ in range(20000):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "with listening() as stop:\n    sender = threading.Thread(target=send)\n    sender.start()\n"
        "    while sender.is_alive():\n        try:\n            stop.wait(0.0)\n"
        "        except StopRequestedError:\n            stop.signal_number = None\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_process_stopped_longer_than_it_waits_goes_on_although_a_signal_came_meanwhile():
    code = (
        "import signal\nfrom csi_job.signals import Stop\n"
        "signal.signal(signal.SIGUSR2, lambda *_: None)\nprint(flush=True)\nStop().wait(0.2)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1)
        for number in (signal.SIGSTOP, signal.SIGUSR2):
            process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_another_thread_changes_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with listening() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_second_ctrl_c_ends_the_process_at_once():
    code = (
        "import os, signal\nfrom csi_job.signals import listening\n"
        "with listening():\n    os.kill(os.getpid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("module", ["click", "csi_job.cli.status"])
@pytest.mark.parametrize("becomes", ["", "ValueError"])  # as C code that imports or validates may do
def test_a_signal_during_imports_ends_a_command_in_one_line(number, code, module, becomes):
    script = f"""
import os, signal, sys
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), {number:d})
            except BaseException:
                raise {becomes}
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Sender())
from csi_job.__main__ import main
main()
"""
    result = subprocess.run([sys.executable, "-c", script, "status"], capture_output=True, text=True, check=False)
    assert result.returncode == code
    [line] = filter(None, result.stderr.splitlines())
    assert line.startswith("csi-job: stopped")
    assert "run the same command again to " in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_finalizer_is_not_lost(number):
    """Python drops what is raised there, with a traceback."""
    code = (
        "import signal, time\nfrom csi_job.cli import _receive_signals\n_receive_signals()\n"
        f"class Dies:\n    def __del__(self):\n        signal.raise_signal({number:d})\n"
        "try:\n    Dies()\n    time.sleep(60)\nexcept BaseException as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == ("StopRequestedError" if number == signal.SIGTERM else "KeyboardInterrupt")
    assert done.stderr == ""
