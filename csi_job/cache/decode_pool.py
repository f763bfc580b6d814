"""A pool of decoder processes: it uses all cores, and survives files that crash or hang a decoder.

Each decoder is a fresh interpreter (`python -m csi_job.cache.decode_pool`) that imports only the image readers: it
starts quickly, never runs the caller's script again as multiprocessing's spawn and forkserver do, and inherits no
threads or locks. It receives one path at a time on standard input and answers with pixels or a problem.
"""

import contextlib
import os
import pickle
import re
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from csi_job.errors import CsiJobError, DataError
from csi_job.files import digest
from csi_job.radiographs.read import decode_radiograph, read_content, silence_decoders

DECODE_LIMIT_S = 120  # no radiograph takes longer
MAX_DECODER_BYTES = 6 << 30  # of address space; about ten times what the largest image allowed needs
_ATTEMPTS = 2  # a decoder may have died because others used up the memory
_READY = ("", "ready")
_NEEDED = re.compile(r"PATH|HOME|TMPDIR|LANG|LC_\w+|LD_\w+|DYLD_\w+|PYTHON\w+|MALLOC_\w+|COVERAGE_\w+")
# Reuse the memory of films: by default glibc returns it, and the kernel clears it again for the next one.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # the decoders themselves are the parallelism


def decode_images(
    images: Iterable[tuple[int, Path]],
    side_px: int,
    max_image_side_px: int,
    num_decoders: int,
    on_digest: Callable[[int, str], object] | None = None,
    limit_s: float = DECODE_LIMIT_S,
) -> Generator[tuple[int, np.ndarray | str]]:
    """Decode images, each with its index, in parallel; memory does not grow with their number.

    With `on_digest`, decoders also digest what they read, and it is called with the index and SHA-256 of an image
    before that is yielded; not for images that cannot be read or whose decoder died.

    Yields:
        The index with uint8 `[side_px, side_px]`, or with the problem; in the order in which they finish.

    Raises:
        CsiJobError: a decoder cannot be started.
    """
    waiting = iter(images)
    with contextlib.ExitStack() as at_end, selectors.DefaultSelector() as selector:
        for _, image in zip(range(num_decoders), waiting, strict=False):
            started = _Decoder(image, side_px, max_image_side_px, limit_s, on_digest)
            at_end.callback(started.kill)
            selector.register(started, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                decoder: Any = key.fileobj
                selector.unregister(decoder)
                answer = decoder.receive()
                if answer is not None:
                    yield decoder.image[0], answer
                    image_or_end = next(waiting, None)
                    if image_or_end is None:
                        continue
                    decoder.assign(image_or_end)
                selector.register(decoder, selectors.EVENT_READ)


def decoder_environment() -> dict[str, str]:
    """Return the environment of decoders: files are of unknown origin, so they see no password and no key."""
    needed = {name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)}
    return {**_KEEP_MEMORY, **needed, **_ONE_THREAD}


class _Decoder:
    """One process and its current image; restarted if it dies."""

    def __init__(
        self,
        image: tuple[int, Path],
        side_px: int,
        max_image_side_px: int,
        limit_s: float,
        on_digest: Callable[[int, str], object] | None,
    ) -> None:
        self._on_digest, self._limit_s = on_digest, limit_s
        self._arguments = (side_px, max_image_side_px, limit_s, int(on_digest is not None))
        self.image, self._attempt, self._is_ready = image, 1, False
        self._start()

    def fileno(self) -> int:
        return self._output.fileno()

    def assign(self, image: tuple[int, Path]) -> None:
        """Send the next image, after the answer for the previous one."""
        self.image, self._attempt = image, 1
        self._send()

    def receive(self) -> np.ndarray | str | None:
        """Return the answer for the current image, or None if the process has only just started or restarted.

        Raises:
            CsiJobError: the process cannot be started.
        """
        try:
            sha256, answer = pickle.load(self._output)  # noqa: S301 - our own process wrote it
        except (EOFError, pickle.UnpicklingError):
            return self._restart()
        if not self._is_ready:
            self._is_ready = True
            self._send()
            return None
        if self._on_digest and sha256:
            self._on_digest(self.image[0], sha256)
        return cast("np.ndarray | str", answer)

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

    def _restart(self) -> str | None:
        """Replace a dead process; return None to retry the image, or the problem if it has had its attempts."""
        code = self._process.wait()
        self.kill()
        if not self._is_ready:
            raise CsiJobError("a decoder process cannot be started", got=f"exit code {code}")
        self._start()
        if code == -signal.SIGALRM:
            return f"the image cannot be decoded (it took longer than {self._limit_s:g} s)"
        self._attempt += 1
        if self._attempt <= _ATTEMPTS:
            return None
        reason = f"signal {-code}" if code < 0 else f"code {code}"
        return f"the image cannot be decoded (its decoder ended with {reason})"

    def _send(self) -> None:
        """Write the path of the current image; a process that is not ready yet gets it once it is."""
        assert self._process.stdin is not None
        if self._is_ready:
            with contextlib.suppress(BrokenPipeError):  # it died; `receive` notices
                pickle.dump(str(self.image[1]), self._process.stdin)
                self._process.stdin.flush()

    def _start(self) -> None:
        package = str(Path(__file__).parents[2])
        places = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
        self._is_ready = False
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
            [sys.executable, "-P", "-m", __spec__.name, *map(str, self._arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the noise of C libraries
            env={**decoder_environment(), "PYTHONPATH": places},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its decoders itself
        )


def _worker_main(side_px: int, max_image_side_px: int, limit_s: float, with_digests: int) -> None:
    """Answer paths with pixels or problems until the parent exits."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_DECODER_BYTES, MAX_DECODER_BYTES))
    silence_decoders()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keep what C libraries print out of the answers
    answer: tuple[str, np.ndarray | str] = _READY
    while True:
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
        try:
            path = Path(pickle.load(sys.stdin.buffer))  # noqa: S301 - the parent wrote it
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # its default action ends the process, even inside a C library
        sha256 = ""
        try:
            content = read_content(path)
            sha256 = digest(content) if with_digests else ""
            answer = sha256, decode_radiograph(content, side_px, max_image_side_px=max_image_side_px)
        except DataError as error:
            answer = sha256, str(error)
        content = b""  # not in memory while the next is read
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _worker_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
