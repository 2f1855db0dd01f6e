"""Publishing with confirms, in bounded time. Nothing here retries for longer than a client waits for its answer."""

import math
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

# With several addresses: a request waits for 2.5 s.
_PUBLISH_WITHIN_S = 2.3
_LAST_ATTEMPT_AFTER_S = 1.5
_SET_ASIDE_S = 5.0  # an address that has failed
_REFUSALS_OF_A_FULL_QUEUE = 2
_LATE_CONFIRM_S = 0.001  # to read a confirm that has arrived
_CONFIRM_WITHIN_S = 12.0  # else a silent connection is closed; by RabbitMQ's default settings an election takes 10 s

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


def publisher_connections(uri: str) -> list[Connection]:
    """Return such a connection to each address of the broker."""
    return [publisher_connection(one) for one in uri.split(";")]


class QueueCounts(NamedTuple):
    """The counts that the broker reports for a queue; on Valkey and Redis, which do not count them, no consumers."""

    messages: int
    consumers: int | None


def probe_broker(uri: str) -> dict[str, QueueCounts]:
    """Check that the broker accepts messages, and count for each queue that workers must consume.

    The message goes to an exchange that every RabbitMQ has and that has no queue: RabbitMQ accepts connections during a
    memory or disk alarm, but no message. A queue without a leader refuses messages too; RabbitMQ then reports that it
    has no consumer.

    Of several addresses, one that confirms is enough.

    Returns:
        by queue, the number of messages that no worker has taken yet, and the number of consumers.

    Raises:
        BrokerUnavailable: the broker did not confirm, with the reason; of several addresses, that of the last one.
    """
    reasons = []
    for connection in publisher_connections(uri):
        try:
            connection.Producer(auto_declare=False).publish("", exchange="amq.fanout")
            count = _count_amqp if connection.transport.driver_type == "amqp" else _count_redis
            return {queue.name: count(connection, queue) for queue in (PREDICTIONS, BATCHES)}
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors) as error:
            reasons.append(error)
        finally:
            connection.collect()
    raise BrokerUnavailable(f"{reasons[-1]}" or repr(reasons[-1])) from reasons[-1]


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


class _Node:
    """The connection to one address of the broker. It has at most one message without a confirm."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.producer: Producer | None = None
        self.failed_at = -math.inf
        self.is_unconfirmed = False
        self.sent_at = -math.inf

    @property
    def is_open(self) -> bool:
        return self.producer is not None

    def open(self) -> Producer:
        if self.producer is None:
            channel = self.connection.default_channel
            if self.connection.transport.driver_type == "amqp":
                for answer in ("basic_ack", "basic_nack"):
                    channel.events[answer].add(self._on_confirm)
            self.producer = Producer(channel, auto_declare=False)
        return self.producer

    def await_confirm(self, within_s: float) -> None:
        """Wait for the confirm of an earlier message, which is no confirm of the next one.

        Raises:
            TimeoutError: there is none yet.
        """
        while self.is_unconfirmed:
            self.open().channel.connection.drain_events(timeout=within_s)

    def close(self) -> None:
        """Close the socket without the AMQP close handshake, which blocks on a frozen broker."""
        self.producer = None
        self.is_unconfirmed = False
        self.connection.collect(_STEP_TIMEOUT_S)

    def _on_confirm(self, _tag: int, _multiple: bool) -> None:
        self.is_unconfirmed = False


class Publisher:
    """Publishes messages, each confirmed by the broker. It opens its connections at the first messages.

    With several addresses it keeps a connection to each one. RabbitMQ sends a message to the leader of its queue. If
    the leader is frozen, a channel that has published before follows the next leader; a new channel waits for the old
    one, for as long as its node counts as running. So the other connections stand by (docs/adr/0028).
    """

    def __init__(self, *connections: Connection) -> None:
        """Publish on connections that `publisher_connections` made."""
        self._nodes = [_Node(connection) for connection in connections]
        self._has_others = len(connections) > 1
        self._errors = (OperationalError, *connections[0].connection_errors, *connections[0].channel_errors)

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
        started = time.monotonic()
        attempts = self._attempts(started)
        refusals = 0  # by new channels, of a queue that has messages
        has_waited = False
        while True:
            node = attempts.pop(0)
            was_open = node.is_open
            # The second connection that stands by gets the rest of the time, in which the queue may find a leader.
            is_patient = was_open and self._has_others and (has_waited or not attempts[0].is_open)
            has_waited |= was_open
            left_s = started + _PUBLISH_WITHIN_S - time.monotonic()
            try:
                message_id = self._publish(node, message, retries, max(_STEP_TIMEOUT_S, left_s * is_patient))
            except self._errors as error:
                cause = error.__cause__ or error
                if isinstance(cause, MessageNacked) and not was_open:
                    refusals += self._has_messages(node, message.queue)
                self._set_aside(node, is_silent=was_open and isinstance(cause, TimeoutError))
                # A queue that has just lost its leader may refuse too, so several addresses are asked.
                if refusals == min(len(self._nodes), _REFUSALS_OF_A_FULL_QUEUE):
                    raise Overloaded("the queue is full") from error
                if not attempts or (self._has_others and time.monotonic() - started > _LAST_ATTEMPT_AFTER_S):
                    raise BrokerUnavailable(f"the broker did not confirm: {error!r}") from error
                if not self._has_others or not isinstance(cause, OSError):
                    time.sleep(_REDECLARE_PAUSE_S)
            else:
                self._nodes.remove(node)
                self._nodes.insert(0, node)  # the next message begins with the address that has worked
                return message_id

    def depth(self, queue: Queue) -> int:
        """Return the number of messages in a queue that this publisher has published to.

        Raises:
            BrokerUnavailable: there is no connection yet, or the broker did not answer.
        """
        node = next((node for node in self._nodes if node.is_open), None)
        if node is None:
            raise BrokerUnavailable("not connected")
        try:
            return _depth(node, queue)
        except self._errors as error:
            self._set_aside(node)
            time.sleep(_REDECLARE_PAUSE_S)
            raise BrokerUnavailable(f"the broker did not report the depth of a queue: {error!r}") from error

    def close(self) -> None:
        """Close the connections; the next message opens them again."""
        for node in self._nodes:
            node.close()

    def _attempts(self, now: float) -> list[_Node]:
        """Return the nodes for a message, in their order: an idle connection may be dead, so each is also tried anew.

        The first is a closed one that has not failed lately, so that every address gets a channel that has published.
        """
        for node in [node for node in self._nodes if node.is_unconfirmed]:
            self._recover(node, now)
        closed = [node for node in self._nodes if not node.is_open and now - node.failed_at > _SET_ASIDE_S][:1]
        standing_by = sorted((node for node in self._nodes if node.is_open), key=lambda node: node.is_unconfirmed)
        return [*closed, *standing_by, *(node for node in self._nodes if node not in closed)]

    def _recover(self, node: _Node, now: float) -> None:
        """Read a late confirm; close a connection on which there is none for too long."""
        try:
            node.await_confirm(_LATE_CONFIRM_S)
        except TimeoutError:
            if now - node.sent_at > _CONFIRM_WITHIN_S:
                node.close()
        except self._errors:
            self._set_aside(node)

    def _set_aside(self, node: _Node, *, is_silent: bool = False) -> None:
        """Use a node last, and close its connection; a silent one stays open, and its channel finds a new leader."""
        if not (is_silent and self._has_others):
            node.close()
        node.failed_at = time.monotonic()
        self._nodes.remove(node)
        self._nodes.append(node)

    def _has_messages(self, node: _Node, queue: Queue) -> bool:
        """Return whether a queue that refused a message is full; a queue without a leader reports no message."""
        try:
            return node.is_open and _depth(node, queue) > 0
        except self._errors:
            return False

    def _publish(self, node: _Node, message: Message[Any], retries: int, confirm_within_s: float) -> str:
        started = time.monotonic()
        node.await_confirm(confirm_within_s)
        waited_s = time.monotonic() - started
        message_id = message.task_id or str(uuid.uuid4())
        producer = node.open()
        node.is_unconfirmed, node.sent_at = node.connection.transport.driver_type == "amqp", time.monotonic()
        app.send_task(
            message.task_name,
            kwargs=message.kwargs(),
            task_id=message_id,
            queue=message.queue,
            retries=retries,
            producer=producer,
            declare=[message.queue, DEAD],
            retry=False,  # `publish` retries, in bounded time
            confirm_timeout=max(confirm_within_s - waited_s, _LATE_CONFIRM_S),
            mandatory=True,  # RabbitMQ returns a message that no queue would receive
            ignore_result=True,  # store/ writes the results; Celery would SUBSCRIBE to one channel for each message
            argsrepr="-",  # without it the worker formats all customers into its log and its events
            kwargsrepr="-",
        )
        return message_id


def _depth(node: _Node, queue: Queue) -> int:
    # RabbitMQ only reports the queue. On Valkey and Redis an empty queue does not exist, so it is declared.
    passive = node.connection.transport.driver_type == "amqp"
    return int(queue(node.open().channel).queue_declare(passive=passive).message_count)
