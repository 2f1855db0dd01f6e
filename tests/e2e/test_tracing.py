"""Traces: the spans of requests, messages and chunks that arrive at a collector."""

import json
import re
import secrets
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest
from tests.harness import marked_model
from tests.harness.collector import CONSUMER, PRODUCER, SERVER, Collector, Context, Span
from tests.harness.customers import Row
from tests.harness.processes import Process, until
from tests.harness.publishing import mark_queued, publish
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

Customer = dict[str, Any]
AT_ONCE = 256
SECRETS = {"Credit_Limit": 31415.92653, "Avg_Open_To_Buy": 27182.81828, "Total_Amt_Chng_Q4_Q1": 1.61803398}
WORKER = "tests.harness.workers.impatient"


@pytest.fixture(scope="module")
def traced(servers: Servers, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the marked model and small chunks, which exports its spans."""
    folder = tmp_path_factory.mktemp("traced")
    settings = {"MODEL_PATH": str(marked_model.save(folder)), "BATCH_CHUNK_ROWS": "50", **collector.env}
    with running_service(servers, folder, WORKER, **settings) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(collector: Collector) -> None:
    """Forget the spans of earlier tests."""
    collector.received.clear()


def server_span(collector: Collector, id_: str) -> Span:
    """Wait for the span of the request that was answered with an id."""
    return until(lambda: [span for span in collector.spans(SERVER) if span.attributes.get("churn.id") == id_])[0]


def linked(spans: list[Span]) -> set[Context]:
    return {context for span in spans for context in span.links}


def send_at_once(service: Service, customer: Customer) -> list[str]:
    """Send customers before the first answer is read; return their task ids."""
    body = json.dumps(customer)
    head = "POST /churn/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    connections = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(AT_ONCE)]
    for connection in connections:
        connection.sendall(request)
    answers = []
    for connection in connections:
        with connection, connection.makefile("rb") as file:
            answers.append(file.read().decode())
    return [json.loads(answer.partition("\r\n\r\n")[2])["task_id"] for answer in answers]


def test_the_log_lines_of_a_traced_request_have_the_id_of_its_trace(
    traced: Service, collector: Collector, customer: Customer
) -> None:
    task_id = traced.predict(customer)
    trace_id = server_span(collector, task_id).context.trace_id
    for process, event in ((traced.api, " request "), (traced.worker, " message ")):
        until(lambda: line_of(process, event, task_id).endswith(f" trace_id={trace_id}"))  # noqa: B023 - called at once
    until(lambda: collector.spans(CONSUMER))  # else it would arrive in the next test


def line_of(process: Process, event: str, task_id: str) -> str:
    return next((line for line in process.text().splitlines() if event in line and task_id in line), "")


def test_each_of_many_requests_has_a_span_and_a_link_from_the_spans_of_its_message(
    traced: Service, collector: Collector, customer: Customer
) -> None:
    ids = send_at_once(traced, customer)
    until(lambda: len(collector.spans(SERVER, "POST /churn/predict")) == AT_ONCE)
    requests = collector.spans(SERVER, "POST /churn/predict")
    contexts = {span.context for span in requests}
    assert {span.attributes["churn.id"] for span in requests} == set(ids)
    assert len({context.trace_id for context in contexts}) == AT_ONCE
    for kind, name in ((PRODUCER, "publish churn"), (CONSUMER, "process churn")):
        until(lambda: linked(collector.spans(kind, name)) == contexts)  # noqa: B023 - called at once
        spans = collector.spans(kind, name)
        assert sum(len(span.links) for span in spans) == AT_ONCE
        assert sum(span.attributes.get("messaging.batch.message_count", 1) for span in spans) == AT_ONCE
        assert {span.context.trace_id for span in spans} <= {context.trace_id for context in contexts}
    assert {span.service for span in requests} == {"churn-api"}
    assert {span.service for span in collector.spans(CONSUMER)} == {"churn-worker"}


def test_the_span_of_a_message_has_the_attributes_of_the_conventions_and_its_outcome(
    traced: Service, collector: Collector, customer: Customer
) -> None:
    task_id = traced.predict(customer)
    request = server_span(collector, task_id)
    (span,) = until(lambda: collector.spans(CONSUMER))
    assert span.parent_id == request.context.span_id
    assert span.links == {request.context: {"churn.id": task_id}}
    numbers = {name: span.attributes[name] for name in ("churn.queue_wait_s", "churn.predict_s", "churn.store_s")}
    assert all(0 <= value < 30 for value in numbers.values())
    assert {name: value for name, value in span.attributes.items() if name not in numbers} == {
        "messaging.system": "rabbitmq" if traced.servers.name == "rabbitmq" else "redis",
        "messaging.destination.name": "churn",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": task_id,
        "churn.outcome": "predicted",
        "churn.predicted": 1,
        "churn.retries": 0,
    }


def test_a_message_has_a_link_to_each_of_256_requests(
    traced: Service, collector: Collector, customer: Customer
) -> None:
    contexts = [Context(secrets.token_hex(16), secrets.token_hex(8)) for _ in range(AT_ONCE)]
    requests = {str(uuid4()): PredictionRequest(customer, traceparent=context.traceparent) for context in contexts}
    mark_queued(traced.servers, requests)
    publish(traced.servers, PredictionMessage(requests))
    (span,) = until(lambda: collector.spans(CONSUMER))
    assert list(span.links) == contexts
    assert [link["churn.id"] for link in span.links.values()] == list(requests)


def test_a_batch_is_one_trace_with_a_span_for_each_chunk(
    traced: Service, collector: Collector, rows: list[Row]
) -> None:
    url = traced.batch_accepted(rows)
    traced.batch_ended(url)
    request = server_span(collector, url.rpartition("/")[2])
    for kind, name in ((PRODUCER, "publish churn.batch"), (CONSUMER, "process churn.batch")):
        until(lambda: len(collector.spans(kind, name)) == 3)  # noqa: B023 - called at once
        for span in collector.spans(kind, name):
            assert (span.context.trace_id, span.parent_id) == (request.context.trace_id, request.context.span_id)
            assert list(span.links) == [request.context]


def test_a_split_message_keeps_the_trace_of_each_request(
    traced: Service, collector: Collector, customer: Customer
) -> None:
    contexts = [Context(secrets.token_hex(16), secrets.token_hex(8)) for _ in range(2)]
    requests = {str(uuid4()): PredictionRequest(customer, traceparent=context.traceparent) for context in contexts}
    mark_queued(traced.servers, requests)
    publish(traced.servers, PredictionMessage(requests), retries=1)
    until(lambda: len(collector.spans(CONSUMER)) == 3)
    split, *singles = sorted(collector.spans(CONSUMER), key=lambda span: -len(span.links))
    assert (split.attributes["churn.outcome"], list(split.links)) == ("split", contexts)
    assert {span.context.trace_id: list(span.links) for span in singles} == {
        context.trace_id: [context] for context in contexts
    }


def test_a_killed_pool_process_loses_no_span_of_another_process(
    traced: Service, collector: Collector, customer: Customer
) -> None:
    ids = [traced.predict(customer)]
    until(lambda: collector.spans(CONSUMER))
    killed = traced.predict({**customer, "Customer_Age": marked_model.KILLS})
    assert traced.ended(killed, within_s=60).status_code == 500
    ids.append(traced.predict(customer))
    wanted = {server_span(collector, task_id).context for task_id in ids}
    until(lambda: linked(collector.spans(CONSUMER)) == wanted)
    assert server_span(collector, killed).context in linked(collector.spans(PRODUCER))


def test_no_span_has_a_customers_value(traced: Service, collector: Collector, customer: Customer) -> None:
    secret = {**customer, **SECRETS}
    fails = {**secret, "Customer_Age": marked_model.RAISES}
    traced.ended(traced.predict(secret))
    failed = traced.predict(fails)
    assert traced.ended(failed).status_code == 500
    traced.batch_ended(traced.batch_accepted([secret, fails]))
    query = {name: str(value) for name, value in SECRETS.items()}
    assert traced.post({**secret, "Gender": 1}, query).status_code == 422
    assert traced.get(f"/churn/{SECRETS['Credit_Limit']}").status_code == 404
    assert traced.get(f"/churn/result/{SECRETS['Credit_Limit']}").status_code == 404
    until(lambda: len([span for span in collector.spans(SERVER) if span.attributes.get("url.query")]) == 1)
    request = server_span(collector, failed)
    until(lambda: request.context in linked(collector.spans(CONSUMER)))
    (span,) = (span for span in collector.spans(CONSUMER) if request.context in span.links)
    ((name, event),) = span.events
    assert (name, event["exception.type"]) == ("exception", "ValueError")
    assert re.search(r"marked_model\.py:\d+$", event["exception.stacktrace"])
    until(lambda: any(span.attributes["url.path"] == "/churn/result/REDACTED" for span in collector.spans(SERVER)))
    until(lambda: len(collector.spans(CONSUMER, "process churn.batch")) == 1)
    values = [*map(str, SECRETS.values()), "a customer's value", "Gender"]
    assert [value for value in values if value in collector.text] == []


def test_health_probes_have_no_span(traced: Service, collector: Collector) -> None:
    assert traced.answers("/livez")
    until(lambda: traced.answers("/readyz"))  # the worker has just replaced a pool process
    assert traced.get("/churn/queue").ok
    until(lambda: collector.spans(SERVER, "GET /churn/queue"))
    assert not {"GET /livez", "GET /readyz"} & {span.name for span in collector.spans(SERVER)}
