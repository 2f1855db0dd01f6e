"""A rolling upgrade: this version computes the messages that version 0.1.0 (commit 6c5fb51) has published.

messages_6c5fb51.json has the messages as that version wrote them to RabbitMQ and to Valkey, and the keys that it wrote
to the result store. They were recorded on its real API.
"""

import json
import re
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
import redis

from tests.harness import marked_model
from tests.harness.customers import CUSTOMER
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

RECORDED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("messages_6c5fb51.json").read_text())
KEY = "celery-task-meta-"


@pytest.fixture(scope="module")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model uses two features, because the recorded customers lack features that were added later."""
    folder = tmp_path_factory.mktemp("upgrade")
    path = marked_model.save_explaining(folder, "1", marked_model.ExplainingModel())
    with running_service(servers, folder, MODEL_PATH=str(path)) as running:
        yield running


def write_states(servers: Servers, states: dict[str, Any]) -> None:
    """Write the recorded keys of the result store, with deadlines in an hour and the default TTL."""
    with servers.redis() as client:
        for key, value in states.items():
            if isinstance(value, dict):
                client.hset(key, mapping=value)
            else:
                client.set(key, re.sub(r'"deadline": [0-9.]+', f'"deadline": {time.time() + 3600}', value))
            client.expire(key, 86_400)


def replay(servers: Servers, messages: list[dict[str, Any]]) -> None:
    """Write the recorded messages to their queues, byte for byte."""
    if servers.name == "valkey":
        with redis.Redis.from_url(servers.broker_uri) as client:
            for message in messages:
                client.lpush(message["queue"], message["message"])
        return
    with servers.connection() as connection:
        channel = connection.default_channel
        for message in messages:
            recorded = amqp.Message(message["body"], application_headers=message["headers"], **message["properties"])
            channel.basic_publish(recorded, exchange="", routing_key=message["queue"])


def customers_of(servers_name: str, recorded: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the customers of the recorded predictions by task id, without the flag for reasons."""
    customers: dict[str, dict[str, Any]] = {}
    for message in recorded["messages"]:
        customers |= arguments_of(servers_name, message)["customers"]
    return {
        task_id: {name: value for name, value in customer.items() if name != "?explain"}
        for task_id, customer in customers.items()
    }


def arguments_of(servers_name: str, message: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of the Celery task in a recorded message."""
    body = message["body"] if servers_name == "rabbitmq" else b64decode(json.loads(message["message"])["body"])
    arguments: dict[str, Any] = json.loads(body)[1]
    return arguments


@pytest.mark.parametrize("kind", ["a prediction", "a prediction with reasons", "a group of predictions"])
def test_a_recorded_prediction_ends_with_its_probability(service: Service, kind: str) -> None:
    recorded = RECORDED[service.servers.name][kind]
    customers = customers_of(service.servers.name, recorded)
    explained = {
        task_id
        for message in recorded["messages"]
        for task_id, customer in arguments_of(service.servers.name, message)["customers"].items()
        if "?explain" in customer
    }
    assert {f"{KEY}{task_id}" for task_id in customers} == set(recorded["states"])
    assert len(explained) == (0 if kind == "a prediction" else 1)

    with service.worker.paused():
        write_states(service.servers, recorded["states"])
        assert {service.result(task_id).status_code for task_id in customers} == {202}
        replay(service.servers, recorded["messages"])
    for task_id, customer in customers.items():
        body = service.ended(task_id).json()
        expected = service.post(CUSTOMER | customer, Prefer="wait=20").json()
        assert body["probability"] == expected["probability"]
        assert ("reasons" in body) == (task_id in explained)
    until(service.servers.is_empty)


def test_a_recorded_batch_ends_with_its_results(service: Service) -> None:
    recorded = RECORDED[service.servers.name]["a batch"]
    arguments = arguments_of(service.servers.name, recorded["messages"][0])
    chunk = json.loads(arguments["content"])
    assert chunk["rows"] == [0, 1, 2, 4]  # The row 3 was invalid.

    write_states(service.servers, recorded["states"])
    replay(service.servers, recorded["messages"])
    url = f"{service.url}/churn/batches/{arguments['batch_id']}"
    service.batch_ended(url)
    columns = chunk["customers"]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    probabilities = [service.post(CUSTOMER | row, Prefer="wait=20").json()["probability"] for row in rows]
    results = [{"row": row, "probability": one} for row, one in zip(chunk["rows"], probabilities, strict=True)]
    assert service.batch_rows(url) == results
