"""Publishing: confirms, lost connections, frozen brokers, and queues with other arguments than ours."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Queue

from celery_task_app.errors import BrokerUnavailable, Overloaded
from celery_task_app.messaging.messages import ChunkMessage, PredictionMessage, PredictionRequest
from celery_task_app.messaging.publisher import Publisher, probe_broker, publisher_connections
from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS
from tests.harness.processes import free_port, silent_port, until
from tests.harness.proxy import proxy
from tests.harness.servers import Servers, rabbitmq_answers
from tests.integration.queues import arguments, delete_queue, take_all

pytestmark = pytest.mark.usefixtures("empty_queues")

REQUEST_WAITS_S = 2.5  # to be accepted, api/group_commit.py


def single(customer: dict[str, Any], task_id: str | None = None) -> PredictionMessage:
    return PredictionMessage({task_id or str(uuid4()): PredictionRequest(customer)})


def publisher_at(uri: str) -> contextlib.closing[Publisher]:
    return contextlib.closing(Publisher(*publisher_connections(uri)))


def test_a_message_is_in_its_queue_with_its_retries(
    servers: Servers, publisher: Publisher, customer: dict[str, Any]
) -> None:
    predictions = PredictionMessage({"x": PredictionRequest(customer), "y": PredictionRequest(customer, explain=True)})
    chunk = ChunkMessage.from_columns("b", 0, [5], {name: [value] for name, value in customer.items()})
    publisher.publish(predictions, retries=2)
    publisher.publish(chunk)
    (first,), (second,) = take_all(servers, PREDICTIONS), take_all(servers, BATCHES)
    assert PredictionMessage.parse(arguments(first)) == predictions
    assert ChunkMessage.parse(arguments(second)) == chunk
    assert (first.headers["task"], first.headers["retries"]) == (PredictionMessage.task_name, 2)
    assert (second.headers["task"], second.headers["retries"]) == (ChunkMessage.task_name, 0)


def test_a_single_prediction_travels_under_its_task_id(
    servers: Servers, publisher: Publisher, customer: dict[str, Any]
) -> None:
    publisher.publish(single(customer, "an id"))
    (message,) = take_all(servers, PREDICTIONS)
    assert message.headers["id"] == "an id"


def test_values_of_a_customer_are_in_the_body_only(
    servers: Servers, publisher: Publisher, customer: dict[str, Any]
) -> None:
    publisher.publish(single({**customer, "Credit_Limit": 12345.678}))
    (message,) = take_all(servers, PREDICTIONS)
    assert "12345.678" in json.dumps(arguments(message))
    assert "12345.678" not in json.dumps([message.headers, message.properties], default=str)
    assert message.headers["argsrepr"] == message.headers["kwargsrepr"] == "-"
    assert message.headers["ignore_result"] is True


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "silent"])
def test_an_unreachable_broker_is_an_error_within_seconds(
    servers: Servers, customer: dict[str, Any], is_refused: bool
) -> None:
    with silent_port() as silent:
        uri = servers.broker_uri_at(free_port() if is_refused else silent)
        with publisher_at(uri) as publisher, pytest.raises(BrokerUnavailable, match="did not confirm"):
            publisher.publish(single(customer))
        with pytest.raises(BrokerUnavailable):
            probe_broker(uri)


@pytest.mark.timeout(20, func_only=True)  # without time limits of our own it takes for ever
def test_a_frozen_broker_is_an_error_within_seconds(servers: Servers, customer: dict[str, Any]) -> None:
    with publisher_at(servers.broker_uri) as first, publisher_at(servers.broker_uri) as second:
        for publisher in (first, second):
            publisher.publish(single(customer))
        with servers.broker.paused():
            with pytest.raises(BrokerUnavailable, match="did not confirm"):
                first.publish(single(customer))
            with pytest.raises(BrokerUnavailable, match="depth"):
                second.depth(PREDICTIONS)
            with pytest.raises(BrokerUnavailable):
                probe_broker(servers.broker_uri)
        first.publish(single(customer))


def test_a_lost_connection_costs_no_message(servers: Servers, customer: dict[str, Any]) -> None:
    with proxy(servers.broker_port) as between, publisher_at(servers.broker_uri_at(between.port)) as publisher:
        for _ in range(3):
            publisher.publish(single(customer))
            between.drop()
        publisher.publish(single(customer))
    assert len(take_all(servers, PREDICTIONS)) == 4


def test_the_depth_is_the_number_of_messages(servers: Servers, publisher: Publisher, customer: dict[str, Any]) -> None:
    with pytest.raises(BrokerUnavailable, match="not connected"):
        publisher.depth(PREDICTIONS)
    for _ in range(3):
        publisher.publish(single(customer))
    assert publisher.depth(PREDICTIONS) == 3
    take_all(servers, PREDICTIONS)
    assert publisher.depth(PREDICTIONS) == 0


def test_a_probe_counts_the_messages_of_each_queue(
    servers: Servers, publisher: Publisher, customer: dict[str, Any]
) -> None:
    for _ in range(3):
        publisher.publish(single(customer))
    consumers = 0 if servers.name == "rabbitmq" else None
    assert probe_broker(servers.broker_uri) == {"churn": (3, consumers), "churn.batch": (0, consumers)}


class SmallQueueMessage(PredictionMessage):
    """A message whose queue takes three messages."""

    __slots__ = ()
    queue: ClassVar[Queue] = Queue(
        "churn.small", routing_key="churn.small", queue_arguments=PREDICTIONS.queue_arguments | {"x-max-length": 3}
    )


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
class TestRabbitMQ:
    """Guarantees that Valkey and Redis do not give."""

    @pytest.fixture
    def small_queue(self, servers: Servers) -> Iterator[Queue]:
        yield SmallQueueMessage.queue
        delete_queue(servers, SmallQueueMessage.queue)

    def test_a_full_queue_is_an_overload_and_keeps_every_accepted_message(
        self, servers: Servers, publisher: Publisher, small_queue: Queue, customer: dict[str, Any]
    ) -> None:
        accepted: list[str] = []

        def fill() -> None:
            for _ in range(100):
                task_id = str(uuid4())
                publisher.publish(SmallQueueMessage({task_id: PredictionRequest(customer)}))
                accepted.append(task_id)

        with pytest.raises(Overloaded, match="full"):
            fill()
        assert [list(arguments(message)["customers"]) for message in take_all(servers, small_queue)] == [
            [task_id] for task_id in accepted
        ]

    def test_a_deleted_queue_is_declared_again(
        self, servers: Servers, publisher: Publisher, customer: dict[str, Any]
    ) -> None:
        publisher.publish(single(customer))
        delete_queue(servers, PREDICTIONS)
        publisher.publish(single(customer))
        assert len(take_all(servers, PREDICTIONS)) == 1

    @pytest.mark.parametrize("queue", [PREDICTIONS, BATCHES, DEAD], ids=lambda queue: queue.name)
    def test_the_queues_are_quorum_queues(self, servers: Servers, queue: Queue) -> None:
        classic = queue.queue_arguments | {"x-queue-type": "classic"}
        with servers.connection() as connection, pytest.raises(PreconditionFailed, match="x-queue-type"):
            Queue(queue.name, queue_arguments=classic, channel=connection.default_channel).queue_declare()

    @pytest.mark.parametrize("queue", [PREDICTIONS, BATCHES], ids=lambda queue: queue.name)
    @pytest.mark.parametrize("argument", ["x-max-length", "x-dead-letter-strategy"])
    def test_the_queues_are_limited_and_dead_letter_at_least_once(
        self, servers: Servers, queue: Queue, argument: str
    ) -> None:
        others = {name: value for name, value in queue.queue_arguments.items() if name != argument}
        with servers.connection() as connection, pytest.raises(PreconditionFailed, match=argument):
            Queue(queue.name, queue_arguments=others, channel=connection.default_channel).queue_declare()

    def test_a_connection_to_each_address_stands_by(self, servers: Servers, customer: dict[str, Any]) -> None:
        with proxy(servers.broker_port) as first, proxy(servers.broker_port) as second:
            uri = ";".join(servers.broker_uri_at(between.port) for between in (first, second))
            with publisher_at(uri) as publisher:
                for _ in range(5):
                    publisher.publish(single(customer))
            assert (first.accepted, second.accepted) == (1, 1)
        assert len(take_all(servers, PREDICTIONS)) == 5

    def test_an_address_that_does_not_confirm_is_left_for_the_next_one(
        self, servers: Servers, customer: dict[str, Any]
    ) -> None:
        with proxy(servers.broker_port) as first, proxy(servers.broker_port) as second:
            uri = ";".join(servers.broker_uri_at(between.port) for between in (first, second))
            with publisher_at(uri) as publisher:
                for _ in range(2):
                    publisher.publish(single(customer))
                second.silence(b"AMQP")  # the one that was used last
                for _ in range(3):
                    publisher.publish(single(customer))
            assert (first.accepted, second.accepted) == (1, 1)
        # The broker has no copy of the message that was not forwarded.
        assert len(take_all(servers, PREDICTIONS)) == 5

    @pytest.mark.timeout(40, func_only=True)
    def test_a_late_confirm_keeps_the_connections_and_confirms_no_other_message(
        self, servers: Servers, customer: dict[str, Any]
    ) -> None:
        with proxy(servers.broker_port) as first, proxy(servers.broker_port) as second:
            uri = ";".join(servers.broker_uri_at(between.port) for between in (first, second))
            with publisher_at(uri) as publisher:
                for _ in range(2):
                    publisher.publish(single(customer))
                for _ in range(2):
                    with servers.broker.paused():
                        started = time.monotonic()
                        with pytest.raises(BrokerUnavailable, match="did not confirm"):
                            publisher.publish(single(customer))
                        assert time.monotonic() - started < REQUEST_WAITS_S
                    until(lambda: rabbitmq_answers(servers.broker_uri))
                for _ in range(2):
                    publisher.publish(single(customer))
            assert (first.accepted, second.accepted) == (1, 1)

    def test_idle_connections_that_are_lost_cost_no_message(self, servers: Servers, customer: dict[str, Any]) -> None:
        with proxy(servers.broker_port) as first, proxy(servers.broker_port) as second:
            uri = ";".join(servers.broker_uri_at(between.port) for between in (first, second))
            with publisher_at(uri) as publisher:
                for _ in range(3):
                    for _ in range(2):
                        publisher.publish(single(customer))
                    first.drop()
                    second.drop()
        assert len(take_all(servers, PREDICTIONS)) == 6

    @pytest.mark.parametrize("position", [0, 1, 2])
    @pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "silent"])
    def test_one_address_of_three_is_enough(
        self, servers: Servers, customer: dict[str, Any], position: int, is_refused: bool
    ) -> None:
        with silent_port() as silent, silent_port() as another:
            ports = [free_port(), free_port()] if is_refused else [silent, another]
            ports.insert(position, servers.broker_port)
            uri = ";".join(servers.broker_uri_at(port) for port in ports)
            with publisher_at(uri) as publisher:
                publisher.publish(single(customer))
            assert probe_broker(uri)["churn"].messages == 1

    @pytest.mark.usefixtures("small_queue")
    @pytest.mark.parametrize("addresses", [1, 3])
    def test_a_full_queue_is_an_overload_at_every_address(
        self, servers: Servers, customer: dict[str, Any], addresses: int
    ) -> None:
        def fill(publisher: Publisher) -> None:
            for _ in range(100):
                publisher.publish(SmallQueueMessage({str(uuid4()): PredictionRequest(customer)}))

        with publisher_at(";".join([servers.broker_uri] * addresses)) as publisher:
            for _ in range(2):
                with pytest.raises(Overloaded, match="full"):
                    fill(publisher)

    @pytest.mark.timeout(20, func_only=True)
    def test_no_address_is_tried_for_longer_than_a_request_waits(
        self, servers: Servers, customer: dict[str, Any]
    ) -> None:
        with silent_port() as silent:
            uri = ";".join([servers.broker_uri_at(silent)] * 20)
            started = time.monotonic()
            with publisher_at(uri) as publisher, pytest.raises(BrokerUnavailable, match="did not confirm"):
                publisher.publish(single(customer))
            assert time.monotonic() - started < REQUEST_WAITS_S
