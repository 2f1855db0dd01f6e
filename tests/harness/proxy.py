"""A TCP proxy in front of a server, with which a test loses connections without touching the server or its client."""

import contextlib
import math
import socket
import threading
from collections.abc import Iterator

_KEPT_BYTES = 10_000


class Proxy:
    """A proxy on a port of its own.

    Attributes:
        port: a client connects to it.
        accepted: the number of connections so far.
    """

    def __init__(self, target_port: int, max_bytes: float) -> None:
        self._target = ("127.0.0.1", target_port)
        self._left = max_bytes
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._sent: dict[socket.socket, bytes] = {}  # the first bytes of each client
        self._last: dict[socket.socket, bytes] = {}  # the last bytes of each client
        self._silent: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.port = int(self._listener.getsockname()[1])

    def is_forwarding(self, sent: bytes) -> bool:
        """Tell whether these bytes are in the last piece that a client has sent on an open connection."""
        with self._lock:
            return any(sent in piece for piece in self._last.values())

    def silence(self, sent: bytes) -> None:
        """Forward nothing more on the open connections whose client has sent these bytes; close none of them."""
        with self._lock:
            self._silent |= {end for end, texts in self._sent.items() if sent in texts}

    def drop(self) -> None:
        """Lose all connections; a new one is accepted."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Lose all connections; a new one is refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server is down
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            pair = threading.Thread(target=self._forward, args=(client, server))
            self._threads.append(pair)
            pair.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._copy, args=(server, client, client))
        back.start()
        self._copy(client, server, client)
        back.join()
        with self._lock:
            self._open -= {client, server}
            self._sent.pop(client, None)
            self._last.pop(client, None)
            self._silent.discard(client)
        client.close()
        server.close()

    def _copy(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                if source is client:
                    with self._lock:
                        self._last[client] = piece
                        self._sent[client] = (self._sent.get(client, b"") + piece)[:_KEPT_BYTES]
                    self._left -= len(piece)
                    if self._left < 0:
                        self.close()
                        break
                if client not in self._silent:
                    target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(target_port: int, max_bytes: float = math.inf) -> Iterator[Proxy]:
    """Run a proxy that closes itself once clients have sent so many bytes."""
    running = Proxy(target_port, max_bytes)
    try:
        yield running
    finally:
        running.close()
        running.join()
