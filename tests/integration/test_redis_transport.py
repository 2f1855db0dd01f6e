"""Valkey as the broker: a message is unacknowledged from the moment that it leaves its queue."""

import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection

from celery_task_app.messaging.publisher import publisher_connection
from celery_task_app.messaging.redis_transport import Transport
from celery_task_app.worker import BATCHES, PREDICTIONS, app, broker_address
from tests.harness.processes import until
from tests.harness.servers import Servers

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

TRANSPORT = "celery_task_app.messaging.redis_transport:Transport"


@pytest.fixture
def broker(servers: Servers) -> Iterator[redis.Redis]:
    """A client of the broker's empty database."""
    with redis.Redis.from_url(servers.broker_uri) as broker:
        broker.flushdb()
        yield broker


def publish(servers: Servers, body: object, queue: str = PREDICTIONS.name) -> None:
    with servers.connection(TRANSPORT) as connection, connection.Producer() as producer:
        producer.publish(body, routing_key=queue, exchange="", serializer="json")


class PatientTransport(Transport):
    """The transport, except that it blocks for a minute: only the wake-up list delivers earlier."""

    brpop_timeout = 60


class Received:
    """The messages that a consumer has received."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.messages: list[Any] = []

    def keep(self, body: Any, message: Any) -> None:
        """Leave a message unacknowledged."""
        self.bodies.append(body)
        self.messages.append(message)

    def acknowledge(self, body: Any, message: Any) -> None:
        self.keep(body, message)
        message.ack()

    def consume(self, connection: Connection, count: int) -> None:
        """Wait until there are so many messages."""
        while len(self.bodies) < count:
            connection.drain_events(timeout=30)


def test_the_broker_of_our_connections_is_this_transport(servers: Servers) -> None:
    with publisher_connection(servers.broker_uri) as connection:
        assert isinstance(connection.transport, Transport)
    _, transport, tls = broker_address(servers.broker_uri)
    with app.connection_for_read(servers.broker_uri, transport=transport, ssl=tls) as connection:
        assert isinstance(connection.transport, Transport)


def test_a_message_is_recorded_as_unacknowledged_when_it_leaves_the_queue(
    servers: Servers, broker: redis.Redis
) -> None:
    publish(servers, "a message")
    with servers.connection(TRANSPORT) as connection, connection.Consumer(PREDICTIONS):
        connection.transport.cycle.on_poll_start()  # requests a message; the response is never read
        until(lambda: broker.llen(PREDICTIONS.name) == 0)
        assert broker.hlen("unacked") == broker.zcard("unacked_index") == 1


def test_a_message_wakes_a_waiting_consumer(servers: Servers, broker: redis.Redis) -> None:
    received = Received()
    with (
        Connection(servers.broker_uri, transport=PatientTransport) as connection,
        connection.Consumer(PREDICTIONS, callbacks=[received.acknowledge]),
    ):
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.5)
        publish(servers, "a message")
        started_s = time.monotonic()
        received.consume(connection, 1)
        assert time.monotonic() - started_s < 10
    assert received.bodies == ["a message"]
    assert broker.hlen("unacked") == 0


def test_messages_of_a_queue_are_received_in_their_order_and_queues_in_turn(
    servers: Servers, broker: redis.Redis
) -> None:
    for number in range(3):
        publish(servers, f"single {number}")
        publish(servers, f"chunk {number}", BATCHES.name)
    received = Received()
    with (
        servers.connection(TRANSPORT) as connection,
        connection.Consumer([PREDICTIONS, BATCHES], callbacks=[received.acknowledge]),
    ):
        received.consume(connection, 6)
    for kind in ("single", "chunk"):
        assert [body for body in received.bodies if body.startswith(kind)] == [
            f"{kind} {number}" for number in range(3)
        ]
    assert {body.split()[0] for body in received.bodies[:2]} == {"single", "chunk"}


def test_a_message_without_an_acknowledgement_is_redelivered(servers: Servers, broker: redis.Redis) -> None:
    publish(servers, "a message")
    received, redelivered = Received(), Received()
    with servers.connection(TRANSPORT) as first, first.Consumer(PREDICTIONS, callbacks=[received.keep]):
        received.consume(first, 1)
    with servers.connection(TRANSPORT) as second, second.Consumer(PREDICTIONS, callbacks=[redelivered.acknowledge]):
        redelivered.consume(second, 1)
    assert "redelivered" not in received.messages[0].delivery_info
    assert redelivered.messages[0].delivery_info["redelivered"] is True
    assert broker.hlen("unacked") == broker.zcard("unacked_index") == 0


@pytest.mark.parametrize(
    "element",
    [
        b"not JSON",
        b"5",
        b"[]",
        b"{}",
        b'{"body": "x"}',
        b'{"body": "x", "properties": []}',
        b'{"body": "x", "properties": {"delivery_tag": 5}}',
        b'{"body": 5, "properties": {"delivery_tag": "a tag"}}',
        b'{"body": "x", "properties": {"delivery_tag": "a tag", "body_encoding": "unknown"}}',
        b"\xff",
    ],
    ids=str,
)
def test_an_element_that_is_no_message_is_dropped_and_logged_without_its_content(
    servers: Servers, broker: redis.Redis, element: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    broker.lpush(PREDICTIONS.name, element)
    publish(servers, "a message")
    received = Received()
    with (
        caplog.at_level(logging.ERROR, "celery_task_app.messaging.redis_transport"),
        servers.connection(TRANSPORT) as connection,
        connection.Consumer(PREDICTIONS, callbacks=[received.acknowledge]),
    ):
        received.consume(connection, 1)
    assert received.bodies == ["a message"]
    assert broker.hlen("unacked") == broker.zcard("unacked_index") == 0
    (line,) = caplog.messages
    assert line == f"malformed message dropped queue={PREDICTIONS.name} bytes={len(element)}"
