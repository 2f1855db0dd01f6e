"""The recovery of a message whose pool process was lost or ran out of time.

Celery has no extension point for this: `Request.on_failure` is overridden, and reads private attributes. The assertions
below fail at import if Celery renames one; docs/adr/0003 has the gain and the condition for the removal.
"""

import logging
from contextlib import closing
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from celery_task_app.errors import AttemptFailed, MalformedMessage, Unavailable
from celery_task_app.observability.logs import log_event

logger = logging.getLogger(__name__)

_OWN_ERRORS = (AttemptFailed, SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError)

for _name in (
    "on_success",
    "on_failure",
    "_already_cancelled",
    "_already_revoked",
    "_context",
    "acknowledge",
    "reject",
    "info",
):
    if not hasattr(Request, _name):
        raise ImportError(f"Celery's Request has no {_name} any more: see docs/adr/0003")


class RecoveringRequest(Request):
    """A message in the worker's main process; only this process learns that a pool process was lost."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Record the summary that a pool process returns; Celery defines `on_success` in a subclass for each task."""
        super().__init_subclass__(**options)
        of_celery = cls.on_success

        def on_success(self: RecoveringRequest, result: tuple[bool, Any, float], **more: Any) -> None:
            of_celery(self, result, **more)
            is_failure, text, _ = result
            if not is_failure:
                self.task.record_summary(text)

        cls.on_success = on_success

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Split the message and requeue each prediction, before the message is acknowledged.

        Celery itself would requeue the whole message (a lost process), or drop it and leave its ids without a terminal
        state (a time limit, any other error).
        """
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        is_cancelled = self._already_cancelled or self._already_revoked or state.should_terminate
        message = None
        if not is_cancelled and not isinstance(error, Reject | Ignore | Retry):
            try:
                message = self.task.message_type.parse(self.kwargs)
            except MalformedMessage as malformed:
                logger.error("malformed message dropped message_id=%s reason=%s", self.id, malformed)  # noqa: TRY400
        if isinstance(error, Reject):
            self.task.metrics.record_requeued(self.task.message_type.kind)
        if message is None:
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        # The text of any other error may have a customer's values.
        text = repr(error) if isinstance(error, _OWN_ERRORS) else type(error).__name__
        log_event(logger, logging.ERROR, "attempt lost", {"message_id": self.id, **message.log_fields, "error": text})
        self.task.metrics.record_lost(message.kind, self._context.retries)
        state.task_ready(self)
        try:
            with closing(self.task.open_delivery()) as delivery:
                delivery.split_and_requeue(message, self._context.retries + 1)
        except Unavailable as unavailable:
            logger.warning("message requeued message_id=%s reason=%s", self.id, unavailable)
            self.reject(requeue=True)
        else:
            self.acknowledge()

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Describe the message for `celery inspect` without its arguments, which are customers."""
        return {**super().info(safe=safe), "args": "-", "kwargs": "-"}
