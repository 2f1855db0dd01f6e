"""A collector of OpenTelemetry for tests: it keeps every span that is exported to it (OTLP over HTTP)."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SERVER, PRODUCER, CONSUMER = 2, 4, 5  # the numbers of span kinds in OTLP


@dataclass(frozen=True, slots=True)
class Context:
    """The ids of a span, in hex."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


@dataclass(frozen=True, slots=True)
class Span:
    """An exported span.

    Attributes:
        service: the name of its process.
        parent_id: of another span in its trace; empty if it has no parent.
        events: the attributes of each event, by its name.
        links: the attributes of each link, by its context.
    """

    service: str
    name: str
    kind: int
    context: Context
    parent_id: str
    attributes: Mapping[str, Any]
    events: Sequence[tuple[str, Mapping[str, Any]]]
    links: Mapping[Context, Mapping[str, Any]]
    is_error: bool


class Collector(ThreadingHTTPServer):
    """The collector, and all that it has received.

    Attributes:
        asked: number of exports, also of those that it has not answered.
        answers: set. While a test clears it, the collector hangs: it accepts connections, and answers no export.
        status: of its answers; it keeps the spans only with 200 OK.
    """

    asked = 0
    status = HTTPStatus.OK

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: list[ExportTraceServiceRequest] = []
        self.answers = threading.Event()
        self.answers.set()

    @property
    def env(self) -> dict[str, str]:
        """Variables of a process that exports its spans to this collector, about five times a second."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    @property
    def text(self) -> str:
        """Everything that was received, as text."""
        return "\n".join(map(str, list(self.received)))

    def spans(self, kind: int | None = None, name: str = "") -> list[Span]:
        """Return the spans that have a kind and a name; all of them by default."""
        found = [
            _decode(span, _values(resource.resource.attributes)["service.name"])
            for request in list(self.received)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return [span for span in found if kind in (None, span.kind) and name in ("", span.name)]


def _decode(span: Any, service: str) -> Span:
    return Span(
        service,
        span.name,
        span.kind,
        Context(span.trace_id.hex(), span.span_id.hex()),
        span.parent_span_id.hex(),
        _values(span.attributes),
        [(event.name, _values(event.attributes)) for event in span.events],
        {Context(link.trace_id.hex(), link.span_id.hex()): _values(link.attributes) for link in span.links},
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        self.server.answers.wait()
        if self.server.status == HTTPStatus.OK:
            self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    """Collect on a spare port."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            collector.answers.set()
            collector.shutdown()
            thread.join()
