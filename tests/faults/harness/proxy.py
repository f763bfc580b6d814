"""A proxy to PostgreSQL, in a separate process, that cuts connections, withholds replies and black-holes traffic.

It knows the frames of PostgreSQL's protocol (https://www.postgresql.org/docs/current/protocol-message-formats.html)
but no statement: a transaction has ended where ReadyForQuery says `idle`.
"""

import asyncio
import contextlib
import ctypes
import random
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy.engine import make_url

from tests.support.processes import FORKS

SO_ATTACH_FILTER: Final = 26
DROP_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)  # the one instruction of a socket filter that keeps 0 bytes
IDLE, READY, COMPLETE = b"I", b"Z"[0], b"C"[0]
READY_AND_IDLE: Final = b"Z\0\0\0\5I"
UNINTERESTING: Final = (b"SET", b"ROLLBACK", b"BEGIN")  # these end nothing that should be stored
CHANCE: Final = 0.1  # that a due fault hits the next query; otherwise it waits for a later one
DETOURS: Final = ("sslmode", "disable"), ("gssencmode", "disable")


@dataclass(frozen=True)
class Counts:
    """The numbers of faults requested and injected so far, shared between the processes."""

    wanted_cuts: Any
    wanted_holes: Any
    cuts: Any
    """Connections that were cut."""
    withheld: Any
    """Of these, the ones cut between the end of a transaction and its reply."""
    holes: Any

    @classmethod
    def zero(cls) -> Self:
        """Return new counters."""
        return cls(*(FORKS.Value("i", 0) for _ in range(5)))


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its counters, and URLs that lead through it."""

    counts: Counts
    port: int

    def url(self, direct: str, **options: str) -> str:
        """Return a database's URL through this proxy, with driver options."""
        through = make_url(direct).set(host="127.0.0.1", port=self.port, query={**dict(DETOURS), **options})
        return through.render_as_string(hide_password=False)


@contextmanager
def running_proxy(upstream: str, *, seed: int = 0, hole_s: float = 20.0, anywhere: bool = True) -> Iterator[Proxy]:
    """Run a proxy to the server's unix socket.

    A black-holed connection stays open for `hole_s` on the server's side. With `anywhere` there are black holes within
    transactions too, whose locks then stay until the server ends them.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    counts = Counts.zero()
    process = FORKS.Process(target=_serve, args=(listener, upstream, counts, seed, hole_s, anywhere), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()  # the process has a copy
    try:
        yield Proxy(counts, port)
    finally:
        process.kill()
        process.join()


def _serve(listener: socket.socket, upstream: str, counts: Counts, seed: int, hole_s: float, anywhere: bool) -> None:  # noqa: FBT001
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    draws = random.Random(seed)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Passage(counts, draws, hole_s, anywhere).run(reader, writer, upstream)

    async def serve() -> None:
        server = await asyncio.start_server(accept, sock=listener, backlog=512)
        await server.serve_forever()

    asyncio.run(serve())


class _Passage:
    """One connection through the proxy."""

    def __init__(self, counts: Counts, draws: random.Random, hole_s: float, anywhere: bool) -> None:  # noqa: FBT001
        self.counts, self.draws, self.hole_s, self.anywhere = counts, draws, hole_s, anywhere
        self.is_idle = False
        self.withholds = False
        self.is_hole = False
        self.answer = bytearray()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: str) -> None:
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(upstream)
        except OSError:
            writer.transport.abort()
            return
        writers = (writer, up_writer)
        tasks = {
            asyncio.create_task(self._requests(reader, up_writer, writer)),
            asyncio.create_task(self._answers(up_reader, writer)),
        }
        with contextlib.suppress(OSError):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self.is_hole:
            await asyncio.sleep(self.hole_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in writers:
            each.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        """Forward what the client sends until a fault ends the connection."""
        while data := await reader.read(65536):
            fault = self._fault() if data[:1] == b"Q" else ""
            if fault == "hole":
                _drop_everything(writer.get_extra_info("socket"))
            if fault in {"hole", "cut before"}:
                return
            up_writer.write(data)
            await up_writer.drain()
            if fault == "cut":
                return

    def _fault(self) -> str:
        """Return the fault to inject into the next query, usually none."""
        counts = self.counts
        if self.withholds or self.draws.random() > CHANCE:
            return ""
        if counts.holes.value < counts.wanted_holes.value and (self.anywhere or self.is_idle):
            counts.holes.value += 1
            self.is_hole = True
            return "hole"
        if counts.cuts.value >= counts.wanted_cuts.value:
            return ""
        fault = self.draws.choice(("cut before", "cut", "withhold", "withhold"))
        self.withholds = fault == "withhold"
        counts.cuts.value += not self.withholds
        return fault

    async def _answers(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward what the server sends, or withhold the reply to the end of a transaction."""
        while data := await up_reader.read(65536):
            self.is_idle = data.endswith(READY_AND_IDLE)
            if self.is_hole:
                continue
            if not self.withholds:
                writer.write(data)
                await writer.drain()
                continue
            self.answer += data
            tag, status = _last_words(bytes(self.answer))
            if status is None:
                continue
            if status == IDLE and not tag.startswith(UNINTERESTING):
                self.counts.cuts.value += 1
                self.counts.withheld.value += 1
                return
            writer.write(bytes(self.answer))
            await writer.drain()
            self.answer.clear()


def _last_words(answer: bytes) -> tuple[bytes, bytes | None]:
    """Return the last command's tag in complete messages, and the status of ReadyForQuery if they end with it."""
    tag, status, start = b"", None, 0
    while start + 5 <= len(answer):
        length = int.from_bytes(answer[start + 1 : start + 5], "big")
        body = answer[start + 5 : start + 1 + length]
        status = body if answer[start] == READY and len(body) == 1 else None
        tag = body if answer[start] == COMPLETE else tag
        start += 1 + length
    return tag, status if start == len(answer) else None


def _drop_everything(connection: Any) -> None:
    """Have the kernel drop what the peer sends from now on, unacknowledged, as a broken network would."""
    program = ctypes.create_string_buffer(DROP_ALL)
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
