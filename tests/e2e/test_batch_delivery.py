"""Delivery of chunks: no row is lost or counted twice, and nothing is left of a batch that was not accepted."""

import json
import signal
import socket
import time
from contextlib import closing
from uuid import uuid4

import psutil
import pytest
from kombu import Queue

from api.http.problems import ProblemType
from celery_task_app.messaging.messages import ChunkMessage
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.worker import BATCHES, DEAD, SCORE_TASK
from tests.harness import marked_model
from tests.harness.assertions import assert_problem
from tests.harness.customers import Row, as_csv, marked_results
from tests.harness.processes import until
from tests.harness.publishing import publish_arguments
from tests.harness.service import Service


@pytest.mark.parametrize("queue", [BATCHES, DEAD], ids=lambda queue: queue.name)
def test_a_duplicate_chunk_changes_no_result(batches: Service, rows: list[Row], queue: Queue) -> None:
    batch_id = str(uuid4())
    url = f"{batches.url}/churn/batches/{batch_id}"
    with closing(BatchStore(connect(batches.servers.backend_uri), result_ttl_s=86_400)) as store:
        store.create(batch_id, 30, 1)
    for number in (0, 500):
        columns = {name: [row[name] for row in rows[:30]] for name in rows[0]}
        columns["Total_Trans_Ct"] = [count + number for count in columns["Total_Trans_Ct"]]
        chunk = ChunkMessage.from_columns(batch_id, 0, list(range(30)), columns)
        publish_arguments(batches.servers, chunk.kwargs(), SCORE_TASK, queue)
        batches.batch_ended(url)
    batches.batch_ended(batches.batch_accepted(rows))  # The worker has processed the earlier messages.
    until(batches.servers.is_empty)
    assert batches.batch_rows(url) == marked_results(rows[:30])


@pytest.mark.parametrize("kwargs", [{}, {"batch_id": "x", "chunk": 0, "content": "{"}, {"content": 5}])
def test_a_malformed_chunk_affects_no_other(batches: Service, rows: list[Row], kwargs: Row) -> None:
    publish_arguments(batches.servers, kwargs, SCORE_TASK, BATCHES)
    batches.batch_ended(batches.batch_accepted(rows))


@pytest.mark.parametrize(
    ("age", "error"),
    [
        (marked_model.KILLS, "TooManyAttempts"),
        (marked_model.SLEEPS, "TooManyAttempts"),
        (marked_model.IS_NAN, "InvalidPrediction"),
        (marked_model.HAS_NO_SHAPE, "InvalidPrediction"),
    ],
    ids=["kills", "sleeps", "NaN", "wrong shape"],
)
def test_a_poisonous_row_fails_alone(batches: Service, rows: list[Row], age: int, error: str) -> None:
    rows[57]["Customer_Age"] = age
    url = batches.batch_accepted(rows)
    assert batches.batch_ended(url, within_s=60)["failed"] == 1
    expected = marked_results(rows)
    expected[57] = {"row": 57, "error": error}
    assert batches.batch_rows(url) == expected


def test_a_killed_worker_loses_and_doubles_no_row(batches: Service, rows: list[Row]) -> None:
    many = rows * 20
    url = batches.batch_accepted(many)
    until(lambda: batches.batch(url).json()["done"] > 0)
    for child in psutil.Process(batches.worker.pid).children():
        child.send_signal(signal.SIGKILL)
    assert batches.batch_ended(url, within_s=60)["failed"] == 0
    assert batches.batch_rows(url) == marked_results(many)
    if batches.servers.name == "rabbitmq":  # Valkey redelivers after a minute; test_delivery.py covers it.
        url = batches.batch_accepted(many)
        batches.worker.kill()
        batches.worker.start()
        assert batches.batch_ended(url, within_s=60)["failed"] == 0
        assert batches.batch_rows(url) == marked_results(many)


def test_a_frozen_broker_is_503_and_a_later_batch_is_accepted(batches: Service, rows: list[Row]) -> None:
    with batches.servers.broker.paused():
        started = time.monotonic()
        response = batches.post_batch(json.dumps(rows), "application/json")
        assert time.monotonic() - started < 15
    assert_problem(response, ProblemType.UNAVAILABLE)
    assert int(response.headers["retry-after"]) >= 1
    until(batches.answers)
    batches.batch_ended(batches.batch_accepted(rows))


def test_a_frozen_result_store_is_503_and_nothing_is_rolled_back(batches: Service, rows: list[Row]) -> None:
    """A roll-back would fail and take as long as the first call."""
    before = batches.api.text().count("batch taken back")
    with batches.servers.store.paused():
        response = batches.post_batch(json.dumps(rows), "application/json")
    assert_problem(response, ProblemType.UNAVAILABLE)
    assert batches.api.text().count("batch taken back") == before
    until(batches.answers)
    batches.batch_ended(batches.batch_accepted(rows))


def test_a_client_that_disconnects_within_its_file_leaves_nothing(batches: Service, customer: Row) -> None:
    with batches.servers.redis() as client:
        before = set(client.scan_iter("churn:batch:*"))
        with socket.create_connection(("127.0.0.1", batches.port), timeout=30) as connection:
            head = "POST /churn/batches HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 100000\r\n\r\n"
            connection.sendall((head + as_csv([customer] * 10)).encode())
        assert batches.answers("/livez")
        batches.batch_ended(batches.batch_accepted([customer]))
        assert len(set(client.scan_iter("churn:batch:*")) - before) == 2  # the keys of the last batch
    assert "Traceback" not in batches.api.text()
