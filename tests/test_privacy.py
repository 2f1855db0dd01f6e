"""A customer's values are in the bodies of messages only: in no log, header, event, stored state or answer."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import requests
from celery import Celery
from celery.events import EventReceiver
from kombu import Connection, Queue

from celery_task_app.batches import BatchStore
from celery_task_app.chunk_task import score_chunk
from celery_task_app.tasks import predict_churn
from celery_task_app.worker import BATCHES, DEAD, PREDICT_TASK, PREDICTIONS
from tests import marked_model
from tests.processes import Servers, Service, until

SECRETS = {"Credit_Limit": 31415.92653, "Avg_Open_To_Buy": 27182.81828, "Total_Amt_Chng_Q4_Q1": 1.61803398}


def assert_no_secret(text: object) -> None:
    assert [value for value in map(str, SECRETS.values()) if value in str(text)] == []


@pytest.fixture
def secret(customer: dict[str, Any]) -> dict[str, Any]:
    return {**SECRETS, **customer, **SECRETS}  # first, where a log that cuts what is long would have them


@contextmanager
def heard(servers: Servers) -> Iterator[list[dict[str, Any]]]:
    """Collect the events of all workers."""
    events: list[dict[str, Any]] = []
    app = Celery(broker=servers.broker_uri)
    with app.connection_for_read() as connection:
        receiver = EventReceiver(connection, handlers={"*": events.append}, app=app)

        def hear() -> None:
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                pass

        thread = threading.Thread(target=hear)
        thread.start()
        try:
            yield events
        finally:
            receiver.should_stop = True
            thread.join()


def stored(uri: str) -> str:
    """All that a Redis database holds, as text."""
    with redis.Redis.from_url(uri, decode_responses=True) as client:
        read = {"string": client.get, "hash": client.hgetall, "set": client.smembers}
        return json.dumps([[key, read[client.type(key)](key)] for key in client.scan_iter()], default=list)  # type: ignore[index]


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_the_values_are_in_no_log_event_or_state_after_forced_retries(
    servers: Servers, secret: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"WARM_UP": "true", "MODEL_PATH": str(marked_model.save(tmp_path))}
    service = Service(servers, tmp_path, settings, celery_app="tests.impatient_worker")
    service.worker.command[-1] = "debug"  # instead of info: whoever looks for a fault turns it on
    service.worker.command.append("-E")
    try:
        service.start()
        with heard(servers) as events:
            ages = (45, marked_model.KILLS, marked_model.RAISES)
            customers = [secret | {"Customer_Age": age} for age in ages]
            ids = [service.predict(customer) for customer in customers]
            batch = requests.post(f"{service.url}/churn/batches", json=[customers[0], customers[-1]], timeout=30)
            where = service.url + batch.headers["location"]
            inject_what_nobody_understands(servers, secret)
            answers = [service.ended(task_id, within_s=60) for task_id in ids]
            assert [answer.status_code for answer in answers] == [200, 500, 500]
            until(lambda: requests.get(where, timeout=30).status_code == 200, within_s=60)
            until(lambda: all(word in service.worker.text() for word in ("unregistered task", "unknown message")))
            until(lambda: any(event["type"] == "task-received" for event in events))
        refused = requests.post(f"{service.url}/churn/predict", json=secret | {"Gender": 1}, timeout=30)
        assert refused.status_code == 422
        for answer in (*answers, refused, requests.get(f"{where}/results", timeout=30)):
            assert_no_secret(answer.text)
        assert "attempt lost" in service.worker.text()
        assert_no_secret(service.worker.text())
        assert_no_secret(service.api.text())
        assert_no_secret(events)
        states = stored(servers.backend_uri)
        assert all(task_id in states for task_id in ids)
        assert_no_secret(states)
    finally:
        service.stop()


def inject_what_nobody_understands(servers: Servers, secret: dict[str, Any]) -> None:
    """Send what another version of the service, or anyone, may have sent."""
    task_id = str(uuid4())
    body, bare = [[], {"customers": {task_id: secret}}, {}], {"id": task_id, "task": PREDICT_TASK, "lang": "py"}
    unknown = {"id": str(uuid4()), "task": "not.registered", "lang": "py", "root_id": None}
    with servers.connection() as connection, connection.Producer(serializer="json") as producer:
        for content, headers in (
            (body, bare),
            (body, unknown),
            (body, unknown | {"task": None}),
            ({"customers": secret}, {}),
        ):
            producer.publish(content, routing_key=PREDICTIONS.name, headers=headers)


def outside_of_bodies(servers: Servers, queue: Queue) -> list[Any]:
    """Take the messages of a queue, and return what they carry besides their bodies."""
    found = []
    with Connection(servers.broker_uri) as connection:
        source = Queue(queue.name, channel=connection.default_channel)
        while message := source.get(no_ack=True):
            assert str(SECRETS["Credit_Limit"]) in str(message.payload)
            found.append((message.headers, message.properties, message.delivery_info))
    return found


def test_the_values_are_in_no_header_of_what_is_sent_again(here: Servers, secret: dict[str, Any]) -> None:
    predict_churn.send_apart({"customers": {str(uuid4()): secret, str(uuid4()): secret}}, 2)
    columns = {name: [value, value] for name, value in secret.items()}
    batch_id = str(uuid4())
    BatchStore().create(batch_id, 2, 1)
    content = json.dumps({"rows": [0, 1], "customers": columns})
    score_chunk.send_apart({"batch_id": batch_id, "chunk": 0, "content": content}, 2)
    for queue in (PREDICTIONS, BATCHES):
        headers = outside_of_bodies(here, queue)
        assert [message[0]["retries"] for message in headers] == [2, 2]
        assert_no_secret(headers)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_the_values_are_in_no_header_of_a_dead_letter(here: Servers, secret: dict[str, Any]) -> None:
    predict_churn.send_apart({"customers": {str(uuid4()): secret}}, 1)
    with Connection(here.broker_uri) as connection:
        queue = Queue(PREDICTIONS.name, channel=connection.default_channel)
        dead = Queue(DEAD.name, channel=connection.default_channel)

        def died() -> bool:
            if message := queue.get():
                message.reject(requeue=True)
            return dead.queue_declare(passive=True).message_count > 0

        until(died)
    letters = outside_of_bodies(here, DEAD)
    assert letters[0][0]["x-death"][0]["reason"] == "delivery_limit"
    assert_no_secret(letters)
