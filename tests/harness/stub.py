"""A server that is not the churn service, or shows failures that the real service does not show on demand."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """A server with one response for every request, and a count of the requests."""

    status: int
    body: str
    location = ""  # of a redirect
    requests = 0
    authorization: str | None = None  # header of the last request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.authorization = self.headers.get("Authorization")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    do_POST = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_stub() -> Iterator[Stub]:
    """Serve on a spare port."""
    with Stub(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
