"""A proxy in front of the API server that can be cut off, which is an outage for those behind it alone."""

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit


class Proxy:
    """Forwards connections until it is cut off."""

    def __init__(self, kubeconfig: Path) -> None:
        """Write beside a kubeconfig the one that leads through this proxy."""
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        self._upstream = (server.hostname or "", server.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._is_cut = False
        cluster |= {
            "server": f"https://127.0.0.1:{self._listener.getsockname()[1]}",
            "tls-server-name": server.hostname,
        }
        self.kubeconfig = kubeconfig.with_name("through-proxy")
        self.kubeconfig.write_text(json.dumps(config))
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and accept none."""
        self._is_cut = True
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self._is_cut = False

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._is_cut:
                client.close()
                continue
            server = socket.create_connection(self._upstream)
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
