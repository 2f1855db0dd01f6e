"""Celery's consumer: it reconnects fast, and logs no message bodies.

Celery loads it through the setting `worker_consumer`.
"""

import logging
from functools import partial
from random import uniform
from typing import Any

from celery.worker import consumer
from kombu import Connection

logger = logging.getLogger(__name__)

_RECONNECT_PAUSE_S = (0.5, 1.5)
_REDACTED = "not shown: it may contain customers"
_DELAYED_DELIVERY = "celery.worker.consumer.delayed_delivery:DelayedDelivery"

if _DELAYED_DELIVERY not in consumer.Consumer.Blueprint.default_steps:
    raise ImportError(f"Celery's consumer has no step {_DELAYED_DELIVERY} any more: remove it here too")
for _name in ("on_unknown_message", "on_unknown_task", "on_invalid_task", "on_decode_error", "ensure_connected"):
    if not hasattr(consumer.Consumer, _name):
        raise ImportError(f"Celery's Consumer has no {_name} any more: see docs/adr/README.md")


class Consumer(consumer.Consumer):
    """The consumer of a worker."""

    class Blueprint(consumer.Consumer.Blueprint):
        """The steps of the consumer."""

        # No message has an ETA here. At each start the step for ETAs would declare 28 queues, and log a warning.
        default_steps = tuple(step for step in consumer.Consumer.Blueprint.default_steps if step != _DELAYED_DELIVERY)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Create the consumer without Mingle and Gossip, which would ask other workers at each start for a second."""
        super().__init__(*arguments, **{**options, "without_mingle": True, "without_gossip": True})

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect to the broker, and try again about each second; Celery pauses 2, 4, 6 ... 30 s.

        The pause is random, so that many workers do not connect at the same moment.
        """
        pause_s = uniform(*_RECONNECT_PAUSE_S)  # noqa: S311 - no secret
        options = {"interval_start": pause_s, "interval_step": 0, "interval_max": pause_s}
        conn.ensure_connection = partial(conn.ensure_connection, **options)
        return super().ensure_connected(conn)

    # Celery logs the body of a message that it cannot handle. These four methods are all that do; they log the body
    # that they are given, or the message's own if it is None.

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        """Reject a message that has no task."""
        super().on_unknown_message(_REDACTED, message)

    def on_unknown_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """Reject a message whose task is not registered."""
        super().on_unknown_task(_REDACTED, message, exc)

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """Reject a message that is not valid for its task."""
        super().on_invalid_task(_REDACTED, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Acknowledge a message that cannot be decoded, so that it is not redelivered for ever."""
        logger.critical(
            "message dropped: it cannot be decoded content_type=%s bytes=%d error=%s",
            message.content_type,
            len(message.body),
            type(exc).__name__,  # the text of some decoding errors quotes the body
        )
        message.ack()
