"""Publishing with confirms, in bounded time. Nothing here retries for longer than a client waits for its answer."""

import time
import uuid
from typing import Any, NamedTuple

from amqp.exceptions import MessageNacked, NotFound
from kombu import Connection, Producer, Queue
from kombu.exceptions import OperationalError

from celery_task_app.errors import BrokerUnavailable, Overloaded
from celery_task_app.messaging.messages import Message
from celery_task_app.worker import BATCHES, DEAD, PREDICTIONS, app, broker_address

_STEP_TIMEOUT_S = 0.7  # of each step of a connection, and of a confirm

# RabbitMQ cancels the consumers of a deleted queue only while the queue is absent. Wait before declaring it again.
_REDECLARE_PAUSE_S = 0.3


def _raise_alarm(_reason: str) -> None:
    raise OperationalError("RabbitMQ accepts no messages: a memory or disk alarm")


def publisher_connection(uri: str) -> Connection:
    """Return a connection to the broker, not yet open, that fails within about a second if the broker does not answer.

    RabbitMQ confirms each publish on it; otherwise a refused message looks like an accepted one. Celery's own
    connections have no confirms: the worker's event loop would block on each of Celery's events.
    """
    # Without these options a frozen RabbitMQ or Valkey blocks for ever, and a stopped one for at least two seconds.
    options = {
        "read_timeout": _STEP_TIMEOUT_S,  # RabbitMQ; the time limit of a confirm
        "socket_timeout": _STEP_TIMEOUT_S,  # Valkey and Redis
        "max_retries": 1,
        "interval_start": 0,
        "confirm_publish": True,
        "on_blocked": _raise_alarm,
    }
    return app.connection_for_write(
        **broker_address(uri)._asdict(), transport_options=options, connect_timeout=_STEP_TIMEOUT_S
    )


class QueueCounts(NamedTuple):
    """The counts that the broker reports for a queue; on Valkey and Redis, which do not count them, no consumers."""

    messages: int
    consumers: int | None


def probe_broker(uri: str) -> dict[str, QueueCounts]:
    """Check that the broker accepts messages, and count for each queue that workers must consume.

    The message goes to an exchange that every RabbitMQ has and that has no queue: RabbitMQ accepts connections during a
    memory or disk alarm, but no message. A queue without a leader refuses messages too; RabbitMQ then reports that it
    has no consumer.

    Returns:
        by queue, the number of messages that no worker has taken yet, and the number of consumers.

    Raises:
        BrokerUnavailable: the broker did not confirm, with the reason.
    """
    connection = publisher_connection(uri)
    try:
        connection.Producer(auto_declare=False).publish("", exchange="amq.fanout")
        count = _count_amqp if connection.transport.driver_type == "amqp" else _count_redis
        return {queue.name: count(connection, queue) for queue in (PREDICTIONS, BATCHES)}
    except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors) as error:
        raise BrokerUnavailable(f"{error}" or repr(error)) from error
    finally:
        connection.collect()


def _count_amqp(connection: Connection, queue: Queue) -> QueueCounts:
    channel = connection.channel()  # RabbitMQ closes the channel if there is no such queue
    try:
        declared = queue(channel).queue_declare(passive=True)
    except NotFound:
        return QueueCounts(messages=0, consumers=0)  # the first worker declares it
    return QueueCounts(declared.message_count, declared.consumer_count)


def _count_redis(connection: Connection, queue: Queue) -> QueueCounts:
    # An empty queue does not exist, so it is not only reported, but declared, which writes nothing.
    return QueueCounts(queue(connection.default_channel).queue_declare().message_count, consumers=None)


class Publisher:
    """Publishes messages, each confirmed by the broker. It opens its connection at the first message."""

    def __init__(self, connection: Connection) -> None:
        """Publish on a connection that `publisher_connection` made."""
        self._connection = connection
        self._producer: Producer | None = None

    def publish(self, message: Message[Any], retries: int = 0) -> str:
        """Publish a message; return its id when the broker has confirmed it.

        Args:
            message: its class names its task and its queue.
            retries: the number of attempts that its predictions have lost.

        Raises:
            Overloaded: the queue is full.
            BrokerUnavailable: there was no confirm. The broker may have the message all the same, which is harmless:
                predictions are idempotent.
        """
        # An idle connection may be dead, and a channel whose queue has lost its leader refuses every message, also when
        # there is a new leader. A publish that fails on an old connection is retried once on a new one.
        was_open = self._producer is not None
        try:
            return self._publish(message, retries)
        except (OperationalError, *self._connection.connection_errors, *self._connection.channel_errors) as error:
            is_full = not was_open and isinstance(error.__cause__, MessageNacked) and self._has_messages(message.queue)
            self.close()
            if is_full:
                raise Overloaded("the queue is full") from error
            if not was_open:
                raise BrokerUnavailable(f"the broker did not confirm: {error!r}") from error
            time.sleep(_REDECLARE_PAUSE_S)
            return self.publish(message, retries)

    def depth(self, queue: Queue) -> int:
        """Return the number of messages in a queue that this publisher has published to.

        Raises:
            BrokerUnavailable: there is no connection yet, or the broker did not answer.
        """
        if self._producer is None:
            raise BrokerUnavailable("not connected")
        # RabbitMQ only reports the queue. On Valkey and Redis an empty queue does not exist, so it is declared.
        passive = self._connection.transport.driver_type == "amqp"
        try:
            return int(queue(self._producer.channel).queue_declare(passive=passive).message_count)
        except (OperationalError, *self._connection.connection_errors, *self._connection.channel_errors) as error:
            self.close()
            time.sleep(_REDECLARE_PAUSE_S)
            raise BrokerUnavailable(f"the broker did not report the depth of a queue: {error!r}") from error

    def close(self) -> None:
        """Close the socket without the AMQP close handshake, which blocks on a frozen broker."""
        self._producer = None
        self._connection.collect(_STEP_TIMEOUT_S)

    def _has_messages(self, queue: Queue) -> bool:
        """Return whether a queue that refused a message is full; a queue without a leader reports no message."""
        try:
            return self.depth(queue) > 0
        except BrokerUnavailable:
            return False

    def _publish(self, message: Message[Any], retries: int) -> str:
        if self._producer is None:
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
        message_id = message.task_id or str(uuid.uuid4())
        app.send_task(
            message.task_name,
            kwargs=message.kwargs(),
            task_id=message_id,
            queue=message.queue,
            retries=retries,
            producer=self._producer,
            declare=[message.queue, DEAD],
            retry=False,  # `publish` retries, in bounded time
            mandatory=True,  # RabbitMQ returns a message that no queue would receive
            ignore_result=True,  # store/ writes the results; Celery would SUBSCRIBE to one channel for each message
            argsrepr="-",  # without it the worker formats all customers into its log and its events
            kwargsrepr="-",
        )
        return message_id
