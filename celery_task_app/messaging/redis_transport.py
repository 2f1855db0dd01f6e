"""Valkey or Redis as the broker: kombu's transport, without the gap in which a message is lost.

kombu pops a message from its list, and records in a second step that it is unacknowledged. If the worker or the server
dies between the two steps, the message is lost (docs/adr/0004 has the figures). Here one Lua script does both. Lua
cannot block, so an idle worker blocks on a second list, the wake-up list, which receives one element per message.

kombu has no extension point for this: the class overrides private methods of kombu's channel. The assertions below fail
at import if kombu renames one of them; tests/integration/test_redis_transport.py fails if kombu uses them otherwise.
"""

import logging
from pathlib import Path
from queue import Empty
from time import monotonic, time
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

logger = logging.getLogger(__name__)

_WAKE_UP_LIST = "{}.bell"  # the name that version 0.1.0 uses
_WAKE_UP_TTL_S = 60  # of the wake-up list of a queue without consumers
_TAKE = Path(__file__).with_name("take_message.lua").read_text()

_USED = {
    redis.QoS: ("append", "visibility_timeout"),
    redis.Channel: (
        "_put",
        "_brpop_start",
        "_brpop_read",
        "_in_poll",
        "conn_or_acquire",
        "active_queues",
        "client",
        "unacked_key",
        "unacked_index_key",
        "_brpop_sent_at",
    ),
    redis.Transport: ("_deliver",),
    virtual.QoS: ("append", "ack"),
}
for _class, _names in _USED.items():
    for _name in _names:
        if not hasattr(_class, _name):
            raise ImportError(f"kombu's {_class.__qualname__} has no {_name} any more: see docs/adr/0004")


class QoS(redis.QoS):
    """The unacknowledged messages of a channel."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a message that the script has recorded already."""
        virtual.QoS.append(self, message, delivery_tag)

    @property
    def visibility_timeout(self) -> float:
        """The seconds that kombu subtracts from this host's time, to compare it with times of the server's clock."""
        with self.channel.conn_or_acquire() as client:
            seconds, microseconds = client.time()
        skew_s = time() - (seconds + microseconds / 1e6)
        return float(self.channel.visibility_timeout + skew_s)


class Channel(redis.Channel):
    """A channel that takes messages with the script, and blocks with BRPOP on the wake-up lists."""

    QoS = QoS
    priority_steps = (0,)
    _is_blocked = False

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        super()._put(queue, message, **kwargs)
        wake_up = _WAKE_UP_LIST.format(queue)
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
            pipeline.lpush(wake_up, 1).expire(wake_up, _WAKE_UP_TTL_S).execute()

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        wake_ups = [_WAKE_UP_LIST.format(queue) for queue in queues]
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        if self._is_blocked:
            self.client.connection.send_command("BRPOP", *wake_ups, timeout or self.brpop_timeout)
        else:
            keys = [self.unacked_key, self.unacked_index_key, *queues, *wake_ups]
            self.client.connection.send_command("EVAL", _TAKE, len(keys), *keys, len(queues))

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "EVAL", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if self._is_blocked or answer is None:
                self._is_blocked = not self._is_blocked
                raise Empty
            queue, message, tag = answer
            queue = bytes_to_str(queue)
            self._queue_cycle.rotate(queue)
            self._deliver(queue, message, tag)
            return True
        finally:
            self._in_poll = None

    def _deliver(self, queue: str, message: bytes, tag: bytes | None) -> None:
        try:
            payload = loads(bytes_to_str(message)) if tag else None
            self.Message(payload, channel=self)
        except Exception:  # noqa: BLE001 - kombu would end the worker with any error here
            logger.error("malformed message dropped queue=%s bytes=%d", queue, len(message))  # noqa: TRY400
            if tag:
                self.qos.ack(bytes_to_str(tag))
        else:
            self.connection._deliver(payload, queue)  # noqa: SLF001 - kombu's own channel calls it too


class Transport(redis.Transport):
    """The transport for `redis://` and `rediss://`."""

    Channel = Channel
    # redis-py raises AttributeError now and then when it closes a connection to a Valkey that is gone. Count it as a
    # lost connection, so that the worker reconnects: uncaught it ended one in ten workers when Valkey was restarted.
    connection_errors = (*redis.Transport.connection_errors, AttributeError)
