"""The queue of spans in this process, and a real collector that hangs."""

import logging
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest
from celery_task_app.observability.tracing import Tracing
from tests.harness.collector import Collector, Context, running_collector
from tests.harness.processes import until

QUEUE, BATCH = 8, 2
TRACEPARENT = Context("1" * 32, "2" * 16).traceparent


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and the variables of a process that exports to it from a short queue."""
    with running_collector() as running:
        for name, value in {**running.env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH)}.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def tracing(collector: Collector) -> Iterator[Tracing]:
    """The traces of this process, which are exported."""
    created = Tracing("churn-test", "amqp://localhost//")
    created.start(QUEUE)
    yield created
    collector.answers.set()
    created.stop()


def record(tracing: Tracing, *names: str) -> None:
    """Record spans as FastAPI does, which asks no queue."""
    for name in names:
        with tracing.provider.get_tracer("request").start_as_current_span(name):
            pass


def hang(collector: Collector, tracing: Tracing) -> list[str]:
    """Let the collector hang, and fill the queue; return the names of the spans that wait."""
    collector.answers.clear()
    asked = collector.asked
    exporting = [f"exporting {number}" for number in range(BATCH)]
    record(tracing, *exporting)
    until(lambda: collector.asked > asked)
    waiting = [f"waiting {number}" for number in range(QUEUE)]
    record(tracing, *waiting)
    return exporting + waiting


def names_in(collector: Collector) -> list[str]:
    return [span.name for span in collector.spans()]


def test_a_collector_that_hangs_loses_the_newest_spans_and_no_other_and_gets_later_ones(
    collector: Collector, tracing: Tracing
) -> None:
    kept = hang(collector, tracing)
    assert tracing.is_full
    record(tracing, *(f"lost {number}" for number in range(100)))
    assert names_in(collector) == []
    collector.answers.set()
    until(lambda: len(names_in(collector)) == len(kept))
    assert not tracing.is_full
    record(tracing, "later")
    until(lambda: "later" in names_in(collector))
    assert names_in(collector) == [*kept, "later"]


def test_a_full_queue_is_logged_once_and_not_for_each_span(
    collector: Collector, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[logging.LogRecord] = []
    create = logging.getLogRecordFactory()

    def note(*args: object, **options: object) -> logging.LogRecord:
        made.append(record := create(*args, **options))
        return record

    logging.setLogRecordFactory(note)  # sees the records that a filter of the SDK hides too
    try:
        hang(collector, tracing)
        record(tracing, *(f"lost {number}" for number in range(100)))
        collector.answers.set()
        until(lambda: not tracing.is_full)
        until(lambda: names_in(collector)[-1] == f"waiting {QUEUE - 1}")
        hang(collector, tracing)
    finally:
        logging.setLogRecordFactory(create)
    (line,) = [one.getMessage() for one in made if one.levelno >= logging.WARNING]
    assert line == f"spans are dropped: the collector does not accept them in time limit={QUEUE}"


def test_a_message_has_no_span_while_the_queue_is_full(collector: Collector, tracing: Tracing) -> None:
    message = PredictionMessage({"id": PredictionRequest({}, traceparent=TRACEPARENT)})
    hang(collector, tracing)
    with tracing.processing(message, "message") as span:
        assert not span.is_recording()
    collector.answers.set()
    until(lambda: not tracing.is_full)
    with tracing.processing(message, "message") as span:
        assert span.is_recording()


def test_one_span_waits_while_exports_fail_and_a_full_queue_after_a_success(
    collector: Collector, tracing: Tracing
) -> None:
    def is_full_with_one() -> bool:
        until(lambda: not tracing.is_full)
        record(tracing, "one")
        return tracing.is_full

    assert not is_full_with_one()
    collector.status = HTTPStatus.BAD_REQUEST  # the SDK does not try it again
    until(is_full_with_one)
    collector.status = HTTPStatus.OK
    until(lambda: not is_full_with_one())
