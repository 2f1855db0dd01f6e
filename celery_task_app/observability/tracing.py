"""The traces of one process, for an OpenTelemetry collector. docs/tracing.md has every span.

This module imports the SDK only to create `Tracing`, and a process creates it only if variables OTEL_* ask for traces
(`Settings.is_tracing_on`). The server spans are FastAPI's own. No span has the text of an exception: it may have a
customer's values.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)

from celery_task_app.messaging.messages import Message
from celery_task_app.observability.logs import stack_of
from celery_task_app.observability.metrics import VERSION

if TYPE_CHECKING:
    from celery_task_app.observability.span_queue import SpanQueue

ID = "churn.id"
"""The attribute with the id of a prediction or a batch: of the span that accepts it, and of each link to that span."""

STOP_WITHIN_S = 3
_MAX_LINKS = 1_000  # the limit of GROUP_MAX; the SDK's default of 128 would drop customers of a message


class Tracing:
    """Creates the spans of messages, and exports all spans of this process. Create it after a fork."""

    def __init__(self, service: str, broker_uri: str) -> None:
        """Create a provider, which records nothing before `start`.

        Args:
            service: the name of the process, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another one.
            broker_uri: its scheme is the kind of the broker.
        """
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - only if traces are on
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider  # noqa: PLC0415

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        limits = SpanLimits(max_links=_MAX_LINKS)
        self.provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
        self._tracer = self.provider.get_tracer("churn", VERSION)
        self._system = "rabbitmq" if broker_uri.startswith("amqp") else "redis"
        self._queue: SpanQueue | None = None

    def start(self, queue_size: int) -> None:
        """Start the thread that exports the spans, of which so many may wait."""
        from celery_task_app.observability.span_queue import SpanQueue  # noqa: PLC0415 - it imports the SDK

        self._queue = SpanQueue(queue_size)
        self.provider.add_span_processor(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether the collector is so late that no span can wait for it; then none is started."""
        return self._queue is not None and self._queue.is_full

    def stop(self) -> None:
        """Export the last spans; give up once the collector has not answered for some seconds. The SDK waits 30 s."""
        thread = threading.Thread(target=self.provider.shutdown, name="traces", daemon=True)
        waited_s = self._queue.unanswered_s if self._queue else 0
        thread.start()
        thread.join(max(0, STOP_WITHIN_S - waited_s))

    def publishing(self, message: Message[Any], customers: int) -> AbstractContextManager[Span]:
        """Trace the publication of a message with some customers."""
        attributes: dict[str, str | int] = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
        return self._span(message, customers, SpanKind.PRODUCER, attributes)

    def processing(self, message: Message[Any], message_id: str) -> AbstractContextManager[Span]:
        """Trace the processing of a message that has this id in Celery."""
        attributes: dict[str, str | int] = {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.message.id": message_id,
        }
        return self._span(message, len(message.ids), SpanKind.CONSUMER, attributes)

    @contextmanager
    def _span(
        self, message: Message[Any], customers: int, kind: SpanKind, attributes: dict[str, str | int]
    ) -> Iterator[Span]:
        """Yield a span in the trace of the first traced request, with a link to each; without one, no span.

        So the spans of a message are sampled if one of its requests is.
        """
        traceparents = {} if self.is_full else message.traceparents
        links = [Link(context, {ID: id_}) for id_, text in traceparents.items() if (context := _parse(text)).is_valid]
        if not links:
            yield INVALID_SPAN
            return
        attributes |= {"messaging.system": self._system, "messaging.destination.name": message.queue.name}
        if customers > 1:
            attributes["messaging.batch.message_count"] = customers
        with self._tracer.start_as_current_span(
            f"{attributes['messaging.operation.name']} {message.queue.name}",
            trace.set_span_in_context(trace.NonRecordingSpan(links[0].context)),
            kind,
            attributes,
            links,
            record_exception=False,  # it would record the text too
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                record_exception(error)
                span.set_attribute("error.type", _type_name(error))
                span.set_status(StatusCode.ERROR)
                raise


def trace_request(id_: str) -> str:
    """Give the span of a request the id that was issued; return its `traceparent`, or "" if it is not sampled."""
    span = trace.get_current_span()
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    span.set_attribute(ID, id_)
    return f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-01"


def current_trace_id() -> str:
    """Return the id of the current trace, for a log line; empty if there is none, or it is not sampled."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else ""


def record_exception(error: BaseException) -> None:
    """Add the type and the stack of an exception to the current span, if there is one; never its text."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event("exception", {"exception.type": _type_name(error), "exception.stacktrace": stack_of(error)})


def _parse(traceparent: str) -> SpanContext:
    """Return the context that `trace_request` wrote; the parser of opentelemetry-api is several times slower."""
    try:
        _, trace_id, span_id, flags = traceparent.split("-")
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    except ValueError:
        return INVALID_SPAN_CONTEXT


def _type_name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
