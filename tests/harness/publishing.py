"""Messages that a test publishes in place of the API: accepted customers, duplicates, dead letters and garbage."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from kombu import Queue

from celery_task_app.messaging.messages import Message, PredictionMessage, PredictionRequest
from celery_task_app.messaging.publisher import Publisher, publisher_connection
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import PredictionStore
from celery_task_app.worker import DEAD, PREDICT_TASK, PREDICTIONS, app
from tests.harness.servers import Servers

Customers = dict[str, dict[str, Any]]


def prediction_message(customers: Mapping[str, Mapping[str, object]]) -> PredictionMessage:
    """Return the message of customers by task id."""
    return PredictionMessage({task_id: PredictionRequest(customer) for task_id, customer in customers.items()})


def publish(servers: Servers, *messages: Message[Any], retries: int = 0) -> None:
    """Publish messages as the API does."""
    with closing(Publisher(publisher_connection(servers.broker_uri))) as publisher:
        for message in messages:
            publisher.publish(message, retries)


def publish_alone(servers: Servers, customers: Customers) -> None:
    """Publish each customer in a message of its own."""
    publish(servers, *(prediction_message({task_id: customer}) for task_id, customer in customers.items()))


def publish_arguments(
    servers: Servers,
    kwargs: Mapping[str, Any],
    task_name: str = PREDICT_TASK,
    queue: Queue = PREDICTIONS,
    retries: int = 0,
) -> None:
    """Publish any keyword arguments of a Celery task to any queue."""
    with servers.connection() as connection:
        app.send_task(task_name, kwargs=kwargs, queue=queue, retries=retries, ignore_result=True, connection=connection)


def publish_dead_letter(servers: Servers, message: Message[Any], retries: int = 0) -> None:
    """Publish to the queue of messages that reached RabbitMQ's delivery limit."""
    publish_arguments(servers, message.kwargs(), message.task_name, DEAD, retries)


def mark_queued(servers: Servers, task_ids: Iterable[str]) -> None:
    """Write the QUEUED marker of each task id, with a deadline in an hour."""
    with closing(prediction_store(servers)) as store:
        store.mark_queued(dict.fromkeys(task_ids, 3600))


def prediction_store(servers: Servers) -> PredictionStore:
    """Return the store of predictions on a connection of its own."""
    return PredictionStore(connect(servers.backend_uri), result_ttl_s=86_400)
