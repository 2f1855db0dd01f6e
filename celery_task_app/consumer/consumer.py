"""Celery's consumer without delayed delivery, and without message bodies in its log.

Celery loads it through the setting `worker_consumer`.
"""

import logging
from typing import Any

from celery.worker import consumer

logger = logging.getLogger(__name__)

_REDACTED = "not shown: it may contain customers"
_DELAYED_DELIVERY = "celery.worker.consumer.delayed_delivery:DelayedDelivery"

if _DELAYED_DELIVERY not in consumer.Consumer.Blueprint.default_steps:
    raise ImportError(f"Celery's consumer has no step {_DELAYED_DELIVERY} any more: remove it here too")
for _name in ("on_unknown_message", "on_unknown_task", "on_invalid_task", "on_decode_error"):
    if not hasattr(consumer.Consumer, _name):
        raise ImportError(f"Celery's Consumer has no {_name} any more: check which methods log message bodies")


class Consumer(consumer.Consumer):
    """The consumer of a worker."""

    class Blueprint(consumer.Consumer.Blueprint):
        """The steps of the consumer."""

        # No message has an ETA here. At each start the step for ETAs would declare 28 queues, and log a warning.
        default_steps = tuple(step for step in consumer.Consumer.Blueprint.default_steps if step != _DELAYED_DELIVERY)

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
