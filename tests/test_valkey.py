"""Valkey as the broker: what kombu's own transport does not promise."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection

from celery_task_app.worker import PREDICTIONS
from tests.processes import Servers, until

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.broker_uri) as client:
        client.flushdb()
        yield client


def publish(servers: Servers, body: object) -> None:
    with Connection(servers.broker_uri) as connection, connection.Producer() as producer:
        producer.publish(body, routing_key=PREDICTIONS.name, exchange="", serializer="json")


def test_a_message_on_its_way_to_a_worker_is_written_down(servers: Servers, client: redis.Redis) -> None:
    publish(servers, "a message")
    with Connection(servers.broker_uri) as connection, connection.Consumer(PREDICTIONS):
        connection.transport.cycle.on_poll_start()  # asks for a message, and dies before the answer comes
        until(lambda: client.llen(PREDICTIONS.name) == 0)
        assert client.hlen("unacked") == client.zcard("unacked_index") == 1


def test_a_worker_that_waits_is_woken_by_a_message(servers: Servers, client: redis.Redis) -> None:
    received: list[Any] = []
    patient = {"polling_interval": 60}
    with (
        Connection(servers.broker_uri, transport_options=patient) as connection,
        connection.Consumer(PREDICTIONS, callbacks=[lambda body, message: received.append(body) or message.ack()]),
    ):
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.5)
        publish(servers, "a message")
        while not received:
            connection.drain_events(timeout=30)
    assert received == ["a message"]
    assert client.hlen("unacked") == 0
