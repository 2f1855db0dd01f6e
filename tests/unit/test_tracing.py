"""Traces without a collector: the spans of a message, sampling, and the texts that no span has."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.traced_requests import RedactSpansMiddleware, is_probe
from celery_task_app.messaging.messages import ChunkMessage, PredictionMessage, PredictionRequest
from celery_task_app.observability.tracing import Tracing, record_exception, trace_request
from tests.unit.asgi import call

BROKER = "amqp://localhost//"
TASK_ID = "2f1b7e0c-7b7e-4a52-9d0e-8f6d2b6f3c11"


class Recorded:
    """Traces that are kept in this process."""

    def __init__(self) -> None:
        self.tracing = Tracing("churn-test", BROKER)
        self._exporter = InMemorySpanExporter()
        self.tracing.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @contextmanager
    def request(self) -> Iterator[trace.Span]:
        """Trace a request, as FastAPI does."""
        tracer = self.tracing.provider.get_tracer("request")
        with tracer.start_as_current_span("POST", kind=trace.SpanKind.SERVER) as span:
            yield span


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def traceparent() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def message_of(*traceparents: str) -> PredictionMessage:
    requests = [PredictionRequest({}, traceparent=text) for text in traceparents]
    return PredictionMessage({str(number): request for number, request in enumerate(requests)})


@pytest.mark.parametrize("texts", [("",), ("", ""), ("nonsense",), (f"00-{'0' * 32}-{'0' * 16}-01",)])
def test_a_message_without_a_traced_request_has_no_span(recorded: Recorded, texts: tuple[str, ...]) -> None:
    with recorded.tracing.publishing(message_of(*texts), len(texts)):
        pass
    with recorded.tracing.processing(message_of(*texts), "message") as span:
        span.set_attributes({"churn.outcome": "predicted"})
    assert recorded.spans == ()


def test_the_span_of_a_message_belongs_to_its_first_traced_request_and_has_a_link_to_each(recorded: Recorded) -> None:
    texts = [traceparent() for _ in range(300)]
    with recorded.tracing.processing(message_of("", *texts), "message"):
        pass
    (span,) = recorded.spans
    assert span.context is not None
    assert span.parent is not None
    assert trace.format_trace_id(span.context.trace_id) == texts[0].split("-")[1]
    assert trace.format_span_id(span.parent.span_id) == texts[0].split("-")[2]
    assert [trace.format_span_id(link.context.span_id) for link in span.links] == [text.split("-")[2] for text in texts]
    assert [dict(link.attributes or {}) for link in span.links] == [
        {"churn.id": str(number)} for number in range(1, 301)
    ]


def test_the_span_of_a_published_message_follows_the_conventions(recorded: Recorded) -> None:
    with recorded.tracing.publishing(message_of(traceparent(), ""), 2):
        pass
    with recorded.tracing.publishing(ChunkMessage("b", 0, "{}", traceparent()), 1):
        pass
    first, second = recorded.spans
    common = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    assert (first.name, first.kind, first.attributes) == (
        "publish churn",
        trace.SpanKind.PRODUCER,
        {**common, "messaging.destination.name": "churn", "messaging.batch.message_count": 2},
    )
    assert (second.name, second.attributes) == (
        "publish churn.batch",
        {**common, "messaging.destination.name": "churn.batch"},
    )


def test_an_exception_is_recorded_with_its_type_and_its_stack_and_without_its_text(recorded: Recorded) -> None:
    def fail() -> None:
        raise LookupError("secret")

    with pytest.raises(LookupError), recorded.tracing.processing(message_of(traceparent()), "message"):
        fail()
    (span,) = recorded.spans
    (event,) = span.events
    assert event.attributes is not None
    assert (event.name, event.attributes["exception.type"]) == ("exception", "LookupError")
    assert re.search(r">unit/test_tracing\.py:\d+$", str(event.attributes["exception.stacktrace"]))
    assert (span.attributes or {})["error.type"] == "LookupError"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in span.to_json()


def test_without_a_span_there_is_nothing_to_trace_and_nothing_fails() -> None:
    record_exception(ValueError())
    assert trace_request("id") == ""


def test_a_request_gets_its_id_and_gives_its_context(recorded: Recorded) -> None:
    with recorded.request() as span:
        text = trace_request("id")
    context = span.get_span_context()
    assert text == f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-01"
    (ended,) = recorded.spans
    assert ended.attributes == {"churn.id": "id"}


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_the_message_of_a_sampled_request_is_sampled_and_of_another_one_not(
    monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    recorded, texts = Recorded(), []
    for _ in range(200):
        with recorded.request():
            texts.append(trace_request("id"))
        with recorded.tracing.processing(message_of(texts[-1]), "message"):
            pass
    kinds = [span.kind for span in recorded.spans]
    sampled = sum(1 for text in texts if text)
    assert 0 < sampled < 200
    assert kinds.count(trace.SpanKind.SERVER) == kinds.count(trace.SpanKind.CONSUMER) == sampled


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/churn/predict", "/churn/predict"),
        (f"/churn/result/{TASK_ID}", f"/churn/result/{TASK_ID}"),
        ("/churn/result/42.5", "/churn/result/REDACTED"),
        ("/Married/predict", "/REDACTED/predict"),
        (f"/churn/result/{TASK_ID}42", "/churn/result/REDACTED"),
        ("/churn/{id}", "/churn/REDACTED"),
    ],
)
def test_a_server_span_has_no_text_of_a_client(recorded: Recorded, path: str, shown: str) -> None:
    def answer(_: Request) -> Response:
        return Response()

    templates = ("/churn/predict", "/churn/result/{id}")
    app = Starlette(routes=[Route(template, answer, methods=["POST"]) for template in templates])
    app.add_middleware(RedactSpansMiddleware)
    with recorded.request():
        call(app, "POST", f"{path}?Credit_Limit=31415.92653")
    (span,) = recorded.spans
    assert span.attributes == {"url.path": shown, "url.query": "REDACTED"}


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("/livez", True), ("/readyz", True), ("/v1/readyz", True), ("/churn/predict", False), ("/", False)],
)
def test_health_probes_are_known_by_their_path(path: str, is_one: bool) -> None:
    assert is_probe({"path": path}) is is_one
