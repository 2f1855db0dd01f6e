"""The HTTP server of a process's metrics, on a port of its own: `GET /metrics`. It knows no metric."""

import logging
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from celery_task_app.errors import MetricsPortUnavailable

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 5
PATH = "/metrics"


class MetricsServer:
    """Serves a registry; one for a process, because per-process numbers of two processes must not be mixed."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Bind the port; answer nothing yet.

        Args:
            registry: of the metrics.
            host: address to listen on.
            port: to listen on.

        Raises:
            MetricsPortUnavailable: another process has the port, or the host is not an address of this machine.
        """
        self._registry = registry
        try:
            self._server = _Server((host, port), self._handler())
        except (OSError, OverflowError) as error:
            raise MetricsPortUnavailable(
                f"the metrics of this process need {host}:{port}, which cannot be used: {error}. Give each API process "
                "a METRICS_PORT of its own (a worker uses the next port), or switch the metrics off with METRICS_PORT=0"
            ) from error
        # Imports everything now: no import may run while a process is forked. Not in `start`, which an API's event loop
        # calls: its registry then has the state of the queue, and reading it would wait for the event loop.
        generate_latest(registry)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Answer in a thread; a second call does nothing."""
        if self._thread:
            return
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        host, port = self._server.server_address[:2]
        logger.info("metrics served url=%s", f"http://{host!s}:{port}{PATH}")

    def close(self) -> None:
        """Stop answering, and free the port; a second call does nothing."""
        if self._thread:
            self._server.shutdown()
        self._server.server_close()

    def close_in_child(self) -> None:
        """Close the socket that a forked process has inherited, so that it does not hold the port."""
        self._server.socket.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self._registry

        class Handler(BaseHTTPRequestHandler):
            """Answers GET and HEAD."""

            timeout = _REQUEST_TIMEOUT_S

            def do_GET(self) -> None:
                """Answer with the metrics."""
                if self.path.partition("?")[0] != PATH:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                body = generate_latest(registry)
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", CONTENT_TYPE_LATEST)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in http.server
                """Log nothing: a scrape is no event."""

        return Handler


class _Server(ThreadingHTTPServer):
    allow_reuse_port = False  # else two processes would share the port, and each scrape would show one of them
    daemon_threads = True

    def handle_error(self, request: object, client_address: Any) -> None:  # noqa: ARG002 - an argument of socketserver
        """Log an error of a metric; a scraper that disconnects is none."""
        if not isinstance(sys.exception(), OSError):
            logger.error("scrape failed client=%s", client_address[0], exc_info=sys.exception())
