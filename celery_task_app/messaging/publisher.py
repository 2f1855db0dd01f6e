"""Publishing with confirms, in bounded time. Nothing here retries for longer than a client waits for its answer."""

import time
import uuid
from typing import Any

from amqp.exceptions import MessageNacked
from kombu import Connection, Producer, Queue
from kombu.exceptions import OperationalError

from celery_task_app.errors import BrokerUnavailable, Overloaded
from celery_task_app.messaging.messages import Message
from celery_task_app.worker import DEAD, app, transport_for

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
    transport, tls = transport_for(uri)
    return app.connection_for_write(
        uri, transport=transport, ssl=tls, transport_options=options, connect_timeout=_STEP_TIMEOUT_S
    )


def probe_broker(uri: str) -> None:
    """Publish a message to an exchange that every RabbitMQ has and that has no queue.

    A connection alone proves too little: RabbitMQ accepts connections during a memory or disk alarm.

    Raises:
        BrokerUnavailable: the broker did not confirm, with the reason.
    """
    connection = publisher_connection(uri)
    try:
        connection.Producer(auto_declare=False).publish("", exchange="amq.fanout")
    except OperationalError as error:
        raise BrokerUnavailable(f"{error}") from error
    finally:
        connection.collect()


class Publisher:
    """Publishes messages, each confirmed by the broker. It opens its connection at the first message."""

    def __init__(self, connection: Connection) -> None:
        """Publish on a connection that `publisher_connection` made."""
        self._connection = connection
        self._producer: Producer | None = None

    def publish(self, message: Message[Any], retries: int = 0) -> None:
        """Return when the broker has confirmed a message.

        Args:
            message: its class names its task and its queue.
            retries: the number of attempts that its predictions have lost.

        Raises:
            Overloaded: the queue is full.
            BrokerUnavailable: there was no confirm. The broker may have the message all the same, which is harmless:
                predictions are idempotent.
        """
        # An idle connection may be dead. A publish that fails on it is retried once on a new connection.
        was_open = self._producer is not None
        try:
            self._publish(message, retries)
        except (OperationalError, *self._connection.connection_errors, *self._connection.channel_errors) as error:
            if isinstance(error.__cause__, MessageNacked):
                raise Overloaded("the queue is full") from error
            self.close()
            if not was_open:
                raise BrokerUnavailable(f"the broker did not confirm: {error!r}") from error
            time.sleep(_REDECLARE_PAUSE_S)
            self.publish(message, retries)

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

    def _publish(self, message: Message[Any], retries: int) -> None:
        if self._producer is None:
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
        app.send_task(
            message.task_name,
            kwargs=message.kwargs(),
            task_id=message.task_id or str(uuid.uuid4()),
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
