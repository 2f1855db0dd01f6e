"""Privacy: a customer's values are in no log, metric, event, stored state or response.

tests/integration/test_privacy.py has the headers of messages.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.events import EventReceiver

from api.http.problems import ProblemType
from celery_task_app.worker import PREDICT_TASK, PREDICTIONS
from tests.harness import marked_model
from tests.harness.assertions import assert_problem
from tests.harness.metrics import scrape
from tests.harness.monitoring import running_flower
from tests.harness.processes import free_port, until
from tests.harness.servers import Servers
from tests.harness.service import Service

SECRETS = {"Credit_Limit": 31415.92653, "Avg_Open_To_Buy": 27182.81828, "Total_Amt_Chng_Q4_Q1": 1.61803398}


def assert_no_secret(text: object) -> None:
    assert [value for value in map(str, SECRETS.values()) if value in str(text)] == []


@pytest.fixture
def secret(customer: dict[str, Any]) -> dict[str, Any]:
    """A customer whose secret values come first: a log that truncates long values would show them."""
    return {**SECRETS, **customer, **SECRETS}


@contextmanager
def captured_events(servers: Servers) -> Iterator[list[dict[str, Any]]]:
    """Collect the events of all workers."""
    events: list[dict[str, Any]] = []
    app = Celery(broker=servers.broker_uri)
    with app.connection_for_read() as connection:
        receiver = EventReceiver(connection, handlers={"*": events.append}, app=app)

        def capture() -> None:
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                pass

        thread = threading.Thread(target=capture)
        thread.start()
        try:
            yield events
        finally:
            receiver.should_stop = True
            thread.join()


def stored(uri: str) -> str:
    """Return every key and value of a Redis database as text."""
    with redis.Redis.from_url(uri, decode_responses=True) as client:
        read = {"string": client.get, "hash": client.hgetall, "set": client.smembers}
        return json.dumps([[key, read[client.type(key)](key)] for key in client.scan_iter()], default=list)


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_the_values_are_in_no_log_metric_event_or_state_after_retries(
    servers: Servers, secret: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    settings = {"MODEL_PATH": str(marked_model.save(tmp_path)), "LOG_LEVEL": "debug", "METRICS_PORT": str(port)}
    service = Service(servers, tmp_path, settings, celery_app="tests.harness.workers.impatient")
    service.worker.command = [*service.worker.command, "-E"]
    try:
        service.start()
        with captured_events(servers) as events:
            ages = (45, marked_model.KILLS, marked_model.RAISES, marked_model.EXITS)
            customers = [secret | {"Customer_Age": age} for age in ages]
            ids = [service.predict(customer) for customer in customers]
            url = service.batch_accepted([customers[0], customers[-1]])
            publish_unknown_messages(servers, secret)
            answers = [service.ended(task_id, within_s=60) for task_id in ids]
            assert [answer.status_code for answer in answers] == [200, 500, 500, 500]
            service.batch_ended(url, within_s=60)
            until(servers.is_empty)  # The worker has rejected the unknown messages, and logged them.
            until(lambda: any(event["type"] == "task-received" for event in events))
        refused = service.post(secret | {"Gender": 1})
        assert_problem(refused, ProblemType.INVALID_FEATURES)
        for answer in (*answers, refused, service.batch_results(url)):
            assert_no_secret(answer.text)
        assert "attempt lost" in service.worker.text()
        assert_no_secret(service.worker.text())
        assert_no_secret(service.api.text())
        in_api, in_worker = scrape(port), scrape(port + 1)
        assert in_api.value("churn_refused_inputs_total", feature="Gender", code="literal_error") == 1
        assert in_worker.value("churn_worker_messages_total", kind="predictions", outcome="lost") >= 4
        assert_no_secret(in_api.text + in_worker.text)
        assert_no_secret(events)
        states = stored(servers.backend_uri)
        assert all(task_id in states for task_id in ids)
        assert_no_secret(states)
    finally:
        service.stop()


TASKS_TABLE = "/tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_flower_shows_messages_and_no_values(servers: Servers, secret: dict[str, Any], tmp_path: Path) -> None:
    settings = {"MODEL_PATH": str(marked_model.save(tmp_path)), "REMOTE_CONTROL": "true"}
    service = Service(servers, tmp_path, settings)
    service.worker.command = [*service.worker.command, "-E"]
    try:
        service.start()
        with running_flower(servers, tmp_path) as flower:
            until(lambda: flower.get("/workers?json=1").json()["data"])
            worker = flower.get("/workers?json=1").json()["data"][0]["hostname"]
            ended = [service.predict(secret | {"Customer_Age": age}) for age in (45, marked_model.RAISES)]
            assert [service.ended(task_id).status_code for task_id in ended] == [200, 500]
            service.batch_ended(service.batch_accepted([secret]))
            waiting = [service.predict(secret | {"Customer_Age": marked_model.SLEEPS}) for _ in range(2)]
            until(lambda: waiting[0] in flower.get(TASKS_TABLE).text)
            shown = {path: flower.get(path).text for path in ("/", "/tasks", "/broker", "/metrics", "/api/tasks")}
            shown |= {
                path: flower.get(path).text for path in (TASKS_TABLE, "/api/workers?refresh=1", "/api/task/types")
            }
            shown |= {path: flower.get(path).text for path in (f"/worker/{worker}", "/api/queues/length")}
            for task_id in (*ended, waiting[0]):
                shown |= {path: flower.get(path).text for path in (f"/task/{task_id}", f"/api/task/info/{task_id}")}
                assert "predict_churn" in shown[f"/task/{task_id}"]
            assert all(task_id in shown[TASKS_TABLE] for task_id in ended)
            assert "score_chunk" in shown[TASKS_TABLE]
            assert waiting[0] in shown[f"/worker/{worker}"]  # it is active, and the other one is reserved
            for text in shown.values():
                assert_no_secret(text)
            assert flower.get("/api/tasks", auth=("guest", "guest")).status_code == 401
            assert flower.post(f"/api/worker/shutdown/{worker}").status_code == 403
            assert flower.post(f"/api/task/send-task/{PREDICT_TASK}", json={}).status_code == 403
            for task_id in waiting:
                service.delete(task_id)
        assert_no_secret((tmp_path / "flower.log").read_text())
    finally:
        service.stop()


def publish_unknown_messages(servers: Servers, secret: dict[str, Any]) -> None:
    """Publish messages that another version of the service, or another program, may have published."""
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
