"""Back-pressure with the depth of a real queue."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import pytest
from kombu import Queue

from api.backpressure import Backlog
from celery_task_app.errors import BrokerUnavailable, Overloaded
from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest
from celery_task_app.messaging.publisher import Publisher
from celery_task_app.worker import PREDICTIONS
from tests.harness.servers import Servers
from tests.integration.queues import delete_queue


class CountedMessage(PredictionMessage):
    """A message for a queue that no worker consumes."""

    __slots__ = ()
    queue: ClassVar[Queue] = Queue(
        "churn.counted", routing_key="churn.counted", queue_arguments=PREDICTIONS.queue_arguments
    )


MESSAGE = CountedMessage({"an id": PredictionRequest({})})


@pytest.fixture(autouse=True)
def queue(servers: Servers) -> Iterator[Queue]:
    yield CountedMessage.queue
    delete_queue(servers, CountedMessage.queue)


def test_a_queue_is_counted_in_customers_and_read_again_after_a_second(
    servers: Servers, publisher: Publisher, queue: Queue
) -> None:
    now_s = [1000.0]
    backlog = Backlog(queue.name, 25, partial(publisher.depth, queue), lambda: now_s[0])
    for _ in range(3):
        publisher.publish(MESSAGE)
        backlog.record_published(10)
    with pytest.raises(Overloaded):
        backlog.check()
    with pytest.raises(Overloaded):
        backlog.refuse_if_full()
    with servers.connection() as connection:
        queue(connection.default_channel).purge()
    with pytest.raises(Overloaded):
        backlog.check()
    now_s[0] += 1
    backlog.refuse_if_full()
    backlog.check()


def test_a_publisher_without_a_connection_refuses_no_customer(publisher: Publisher, queue: Queue) -> None:
    Backlog(queue.name, 0, partial(publisher.depth, queue)).check()


def test_a_frozen_broker_refuses_no_customer(servers: Servers, publisher: Publisher, queue: Queue) -> None:
    publisher.publish(MESSAGE)
    assert publisher.depth(queue) == 1
    backlog = Backlog(queue.name, 0, partial(publisher.depth, queue))
    with servers.broker.paused():
        backlog.check()
        backlog.refuse_if_full()
    with pytest.raises(BrokerUnavailable):
        publisher.depth(queue)
