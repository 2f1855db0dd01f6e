"""The spans that wait for the collector. It imports the SDK of OpenTelemetry, so only `Tracing.start` imports it."""

import logging
import threading
import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 60


class SpanQueue(BatchSpanProcessor):
    """Exports ended spans in batches, and drops a span if too many wait.

    The SDK's own queue would drop its oldest span for each new one, and make a log record each time. With a collector
    that hangs, that cost a loaded process more than the exports to one that answers.

    Attributes:
        is_full: whether a span that ends now is dropped; a process then starts none.
    """

    def __init__(self, size: int) -> None:
        """Start the thread that exports; the SDK reads its other variables OTEL_*.

        Args:
            size: spans that wait at most.
        """
        self._size = self._limit = size
        self._waiting = 0
        self._unanswered_since: float | None = None
        self._logged_at = -float("inf")
        self._lock = threading.Lock()
        self.is_full = False
        super().__init__(_Exporter(self), max_queue_size=size)

    @property
    def unanswered_s(self) -> float:
        """Seconds for which the collector has accepted no export; 0 if it accepted the last one."""
        since = self._unanswered_since
        return time.monotonic() - since if since else 0

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span until it is exported, or drop it."""
        with self._lock:
            if self.is_full:
                return
            self._count(1)
        super().on_end(span)
        if self.is_full and time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning("spans are dropped: the collector does not accept them in time limit=%d", self._limit)

    def note_export(self, count: int) -> None:
        """Count an export that starts; its spans wait no longer."""
        with self._lock:
            self._unanswered_since = self._unanswered_since or time.monotonic()
            self._count(-count)

    def note_answer(self, *, is_accepted: bool) -> None:
        """Let one span wait after a failed export, which tries the collector again; else a full queue."""
        with self._lock:
            if is_accepted:
                self._unanswered_since = None
            self._limit = self._size if is_accepted else 1
            self._count(0)

    def _count(self, change: int) -> None:
        self._waiting += change
        self.is_full = self._waiting >= self._limit


class _Exporter(OTLPSpanExporter):
    """Reports each export, and its result, to the queue."""

    def __init__(self, queue: SpanQueue) -> None:
        super().__init__()
        self._queue = queue

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._queue.note_export(len(spans))
        result = super().export(spans)
        self._queue.note_answer(is_accepted=result is SpanExportResult.SUCCESS)
        return result
