"""Decoding in processes of their own, so that all cores work and a file that kills its decoder kills nothing else.

Each decoder is a fresh interpreter (`python -m csi_job.cache.decoders`) that imports the image readers only: it
starts quickly, never runs the caller's script again as multiprocessing's spawn does, and inherits no threads or
locks. It is sent a path at a time on its standard input and answers with pixels or with what is wrong.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from csi_job.errors import CsiJobError, DataError
from csi_job.radiographs.read import read_radiograph

DECODE_LIMIT_S = 120  # what takes longer to decode is no radiograph
MAX_DECODER_BYTES = 6 << 30  # of addresses; some ten times what the largest image allowed needs
_ATTEMPTS = 2  # a decoder that died may have been the victim of others' memory
_READY = "ready"
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # the decoders themselves are the parallelism


def decode_images(
    images: Iterable[tuple[int, Path]],
    side_px: int,
    max_image_side_px: int,
    num_decoders: int,
    limit_s: int = DECODE_LIMIT_S,
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Decode images in parallel, at most one under way for each decoder, so memory does not grow with their number.

    Args:
        images: index and path of each.
        side_px: side of the squares.
        max_image_side_px: largest width or height decoded.
        num_decoders: how many processes.
        limit_s: how long an image may take.

    Yields:
        The index, with uint8 `[side_px, side_px]` or with what is wrong; in the order in which they are done.

    Raises:
        CsiJobError: a decoder cannot be started.

    """
    waiting = iter(images)
    decoders: list[_Decoder] = []
    with contextlib.ExitStack() as at_end, selectors.DefaultSelector() as selector:
        at_end.callback(_kill_all, decoders)
        for _, image in zip(range(num_decoders), waiting, strict=False):
            decoders.append(_Decoder(side_px, max_image_side_px, limit_s))
            decoders[-1].send(image)
            selector.register(decoders[-1], selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                decoder: Any = key.fileobj
                selector.unregister(decoder)
                answer = decoder.receive()
                if answer is not None:
                    yield decoder.index, answer
                    image_or_end = next(waiting, None)
                    if image_or_end is None:
                        continue
                    decoder.send(image_or_end)
                selector.register(decoder, selectors.EVENT_READ)


def num_cores() -> int:
    """Return the cores that this process may use: its affinity, and the quota of its container (cgroup v2)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(available, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or the quota is `max`
        return available


class _Decoder:
    """One process and the image it is at; it is started anew where it died."""

    def __init__(self, side_px: int, max_image_side_px: int, limit_s: int) -> None:
        self._arguments = (side_px, max_image_side_px, limit_s)
        self._image: tuple[int, Path] = (-1, Path())
        self._attempt = 0
        self._process = self._start()

    @property
    def index(self) -> int:
        return self._image[0]

    def fileno(self) -> int:
        return self._output.fileno()

    def send(self, image: tuple[int, Path]) -> None:
        self._image, self._attempt = image, 1
        self._send_again()

    def receive(self) -> np.ndarray | str | None:
        """Return the answer, or None after a decoder died and another was given the image again."""
        try:
            answer: np.ndarray | str = pickle.load(self._output)  # noqa: S301 - our own process wrote it
        except (EOFError, pickle.UnpicklingError):
            reason = self._reason_of_death()
            self.kill()
            self._process = self._start()
            if self._attempt >= _ATTEMPTS or reason.startswith("it took"):
                return f"the image cannot be decoded ({reason})"
            self._attempt += 1
            self._send_again()
            return None
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not yet sent to a dead process
                pipe.close()  # type: ignore[union-attr]

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send_again(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; `receive` finds out
            pickle.dump(str(self._image[1]), self._process.stdin)
            self._process.stdin.flush()

    def _start(self) -> subprocess.Popen[bytes]:
        package = str(Path(__file__).parents[2])
        places = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
        process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
            [sys.executable, "-P", "-m", __spec__.name, *map(str, self._arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the noise of C libraries
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": places},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its decoders itself
        )
        assert process.stdout is not None
        try:
            started = pickle.load(process.stdout) == _READY  # noqa: S301
        except (EOFError, pickle.UnpicklingError):
            started = False
        if not started:
            process.kill()
            raise CsiJobError("a process that decodes images cannot be started", got=f"exit code {process.wait()}")
        return process

    def _reason_of_death(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"it took longer than {self._arguments[-1]} s"
        return f"its decoder ended with signal {-code}" if code < 0 else f"its decoder ended with code {code}"


def _kill_all(decoders: list[_Decoder]) -> None:
    for decoder in decoders:
        decoder.kill()


def _serve(side_px: int, max_image_side_px: int, limit_s: int) -> None:
    """Answer paths with pixels until the parent is gone."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_DECODER_BYTES, MAX_DECODER_BYTES))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a C library prints must not end up among the answers
    answer: np.ndarray | str = _READY
    while True:
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
        try:
            path = Path(pickle.load(sys.stdin.buffer))  # noqa: S301 - the parent wrote it
        except EOFError:
            return
        signal.alarm(limit_s)  # its default action ends the process, also inside a C library
        try:
            answer = read_radiograph(path, side_px, max_image_side_px=max_image_side_px)
        except DataError as error:
            answer = str(error)
        signal.alarm(0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _serve(*map(int, sys.argv[1:4]))
