"""Valkey or Redis as the broker: kombu's transport, except that no message is lost on its way to a worker.

kombu takes a message from its list, and writes down that it is unacknowledged when it has arrived; one that is between
the two when the worker or the server dies is gone. Here one script does both. A script can't wait, so a worker that
finds nothing waits for a bell: a second list, which gets an element with each message.
"""

import logging
from queue import Empty
from time import monotonic, time
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

logger = logging.getLogger(__name__)

_BELL = "{}.bell"
_BELL_LIFE_S = 60  # of a queue that nobody consumes

# Takes the oldest message of the first queue that has one, and writes down where it has to go back to, as kombu does.
# RPOP comes first: a script that has begun to write may go on where the memory is used up.
# KEYS: kombu's hash of unacknowledged messages, its index by time, n queues, their n bells. ARGV: now, n.
_TAKE = """
for i = 3, 2 + ARGV[2] do
    local message = redis.call('RPOP', KEYS[i])
    if message then
        local is_json, envelope = pcall(cjson.decode, message)
        local is_message = is_json and type(envelope) == 'table' and type(envelope.body) == 'string'
        local properties = is_message and envelope.properties
        local tag = type(properties) == 'table' and properties.delivery_tag
        if type(tag) ~= 'string' then
            return {KEYS[i], message, false}
        end
        redis.call('HSET', KEYS[1], tag, '[' .. message .. ', "", ' .. cjson.encode(KEYS[i]) .. ']')
        redis.call('ZADD', KEYS[2], ARGV[1], tag)
        return {KEYS[i], message, tag}
    end
end
redis.call('DEL', unpack(KEYS, 3 + ARGV[2]))
return false
"""


class QoS(redis.QoS):
    """The unacknowledged messages of a channel."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a message that the script has written down."""
        virtual.QoS.append(self, message, delivery_tag)


class Channel(redis.Channel):
    """A channel whose BRPOP is for the bells, with a script before each."""

    QoS = QoS
    priority_steps = (0,)
    _waits = False

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        super()._put(queue, message, **kwargs)
        bell = _BELL.format(queue)
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
            pipeline.lpush(bell, 1).expire(bell, _BELL_LIFE_S).execute()

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        bells = [_BELL.format(queue) for queue in queues]
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        if self._waits:
            self.client.connection.send_command("BRPOP", *bells, timeout or self.brpop_timeout)
        else:
            keys = [self.unacked_key, self.unacked_index_key, *queues, *bells]
            self.client.connection.send_command("EVAL", _TAKE, len(keys), *keys, time(), len(queues))

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "EVAL", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if self._waits or answer is None:
                self._waits = not self._waits
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
        except Exception:  # noqa: BLE001 - whatever it is, kombu would end the worker with it
            logger.error("dropped what is no message queue=%s bytes=%d", queue, len(message))  # noqa: TRY400
            if tag:
                self.qos.ack(bytes_to_str(tag))
        else:
            self.connection._deliver(payload, queue)  # noqa: SLF001 - as kombu's own channel does


class Transport(redis.Transport):
    """The transport of `redis://` and `rediss://`."""

    Channel = Channel
    # Closing a connection to a Valkey that is gone raises this now and then; counted as its loss, it is made anew.
    # Uncaught it ended the worker: seen in one of ten restarts of Valkey under load.
    connection_errors = (*redis.Transport.connection_errors, AttributeError)
