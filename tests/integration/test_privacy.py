"""Values of a customer are in no header of a message that is requeued or dead-lettered."""

import contextlib
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu import Queue

from celery_task_app.consumer.delivery import DeliveryPolicy
from celery_task_app.messaging.messages import ChunkMessage, PredictionMessage, PredictionRequest, Stores
from celery_task_app.messaging.publisher import Publisher
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.predictions import PredictionStore
from celery_task_app.worker import DEAD, PREDICTIONS
from tests.harness.processes import until
from tests.harness.servers import Servers
from tests.integration.queues import take_all

SECRETS = {"Credit_Limit": 31415.92653, "Avg_Open_To_Buy": 27182.81828, "Total_Amt_Chng_Q4_Q1": 1.61803398}

pytestmark = pytest.mark.usefixtures("empty_queues")


@pytest.fixture
def delivery(
    prediction_store: PredictionStore, batch_store: BatchStore, publisher: Publisher
) -> Iterator[DeliveryPolicy]:
    with contextlib.closing(DeliveryPolicy(Stores(prediction_store, batch_store), publisher)) as delivery:
        yield delivery


@pytest.fixture
def secret(customer: dict[str, Any]) -> dict[str, Any]:
    """Return a customer whose secrets come first, where a shortened text would have them."""
    return {**SECRETS, **customer, **SECRETS}


def queued(prediction_store: PredictionStore, *customers: dict[str, Any]) -> PredictionMessage:
    message = PredictionMessage({str(uuid4()): PredictionRequest(customer) for customer in customers})
    prediction_store.mark_queued(dict.fromkeys(message.ids, 3600))
    return message


def envelopes(servers: Servers, queue: Queue) -> list[tuple[dict[str, Any], str]]:
    """Take the messages of a queue; return their headers, and everything beside their bodies as text."""
    found = []
    for message in take_all(servers, queue):
        assert str(SECRETS["Credit_Limit"]) in str(message.payload)
        found.append((message.headers, str((message.headers, message.properties, message.delivery_info))))
    return found


def secrets_in(text: str) -> list[float]:
    return [value for value in SECRETS.values() if str(value) in text]


def test_values_are_in_no_header_of_a_requeued_message(
    servers: Servers,
    delivery: DeliveryPolicy,
    prediction_store: PredictionStore,
    batch_store: BatchStore,
    secret: dict[str, Any],
) -> None:
    delivery.split_and_requeue(queued(prediction_store, secret, secret), 2)
    batch_id = str(uuid4())
    batch_store.create(batch_id, 2, 1)
    columns = {name: [value, value] for name, value in secret.items()}
    delivery.split_and_requeue(ChunkMessage.from_columns(batch_id, 0, [0, 1], columns), 2)
    for queue in (PredictionMessage.queue, ChunkMessage.queue):
        found = envelopes(servers, queue)
        assert [headers["retries"] for headers, _ in found] == [2, 2]
        assert [secrets_in(text) for _, text in found] == [[], []]


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)
def test_values_are_in_no_header_of_a_dead_letter(
    servers: Servers, delivery: DeliveryPolicy, prediction_store: PredictionStore, secret: dict[str, Any]
) -> None:
    delivery.split_and_requeue(queued(prediction_store, secret), 1)
    with servers.connection() as connection:
        source = Queue(PREDICTIONS.name, channel=connection.default_channel)

        def is_dead() -> bool:
            if message := source.get():
                message.reject(requeue=True)
            return servers.depth(DEAD) > 0

        until(is_dead)
    ((headers, text),) = envelopes(servers, DEAD)
    assert headers["x-death"][0]["reason"] == "delivery_limit"
    assert secrets_in(text) == []
