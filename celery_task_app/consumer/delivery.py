"""The delivery policy: what happens to a message, whether it carries predictions or a chunk of a batch.

- A message is predicted, its outcomes are stored, and then it is acknowledged.
- A redelivered message with several customers is split, so that a customer who kills the process fails alone.
- A customer has four attempts. A dead letter has its last attempt, if one is left.
- While the result store is away, the message is tried again for two seconds, then published anew.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_task_app.errors import (
    InvalidPrediction,
    ModelError,
    PredictionError,
    ResultStoreUnavailable,
    TooManyAttempts,
)
from celery_task_app.messaging.messages import Features, Id, Message, Model, Stores
from celery_task_app.messaging.publisher import Publisher
from celery_task_app.observability.logs import log_event, stack_of
from celery_task_app.observability.tracing import record_exception
from celery_task_app.store.predictions import WorkerTimes

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RETRIES = 3  # so each customer has four attempts

# Seconds from the start of a message during which a failed call to the result store is repeated. The last call may take
# another 2.5 s, and the soft time limit is 5 s.
STORE_RETRY_S = 2
_STORE_PAUSE_S = 0.1

_FAILED_MESSAGES_BEFORE_STOP = 3


@dataclass(slots=True)
class MessageSummary:
    """The numbers of a processed message: a pool process returns them, and the main process records them.

    Attributes:
        kind: `predictions` or `rows`.
        outcome: `predicted`; `skipped`, because no customer was pending; `split`; `postponed`, because the result store
            did not answer; `malformed`.
        customers: that were predicted, or for whom the model failed.
        failed: those of them for whom the model failed.
        expired: customers that were not predicted, because their deadline had passed.
        retries: attempts that they had lost before.
        is_dead_letter: whether the message came from the dead letters.
        waited_s: seconds since the first of them was accepted, by the store's clock; None if it is not known.
        predict_s: seconds of the model.
        store_s: seconds of the calls to the result store.
        load_s: seconds in which this pool process loaded the model; 0 if it has inherited the model.
    """

    kind: str
    outcome: str = "predicted"
    customers: int = 0
    failed: int = 0
    expired: int = 0
    retries: int = 0
    is_dead_letter: bool = False
    waited_s: float | None = None
    predict_s: float = 0.0
    store_s: float = 0.0
    load_s: float = 0.0

    def to_text(self) -> str:
        """Return the summary as key=value, which Celery sends to the main process."""
        waited_s = "" if self.waited_s is None else f"{self.waited_s:.4f}"
        return (
            f"kind={self.kind} outcome={self.outcome} customers={self.customers} failed={self.failed} "
            f"expired={self.expired} retries={self.retries} "
            f"dead_letter={int(self.is_dead_letter)} waited_s={waited_s} predict_s={self.predict_s:.4f} "
            f"store_s={self.store_s:.4f} load_s={self.load_s:.3f}"
        )

    def to_attributes(self) -> dict[str, str | int | float]:
        """Return the numbers as attributes of a span."""
        attributes: dict[str, str | int | float] = {
            "churn.outcome": self.outcome,
            "churn.predicted": self.customers,
            "churn.retries": self.retries,
            "churn.predict_s": self.predict_s,
            "churn.store_s": self.store_s,
        }
        return attributes if self.waited_s is None else {**attributes, "churn.queue_wait_s": self.waited_s}

    @classmethod
    def from_text(cls, text: str) -> "MessageSummary":
        """Return the summary of a text, which may have quotes around it: the inverse of `to_text`.

        Raises:
            ValueError: it is not the text of a summary.
        """
        try:
            kind, outcome, customers, failed, expired, retries, dead, waited_s, predict_s, store_s, load_s = (
                part.partition("=")[2] for part in text.strip("'").split(" ")
            )
            return cls(
                kind,
                outcome,
                int(customers),
                int(failed),
                int(expired),
                int(retries),
                dead == "1",
                float(waited_s) if waited_s else None,
                float(predict_s),
                float(store_s),
                float(load_s),
            )
        except ValueError as error:
            raise ValueError(f"not a summary: {text[:40]}") from error


class DeliveryPolicy:
    """Processes messages; the stores and the publisher are its own."""

    def __init__(
        self, stores: Stores, publisher: Publisher, read_example: Callable[[], Features | None] = lambda: None
    ) -> None:
        """Use some stores and a publisher.

        Args:
            stores: of the outcomes.
            publisher: of split and postponed messages.
            read_example: returns a customer that a working model can predict, if there is one. The worker may have
                loaded the model before an API wrote it.
        """
        self._stores = stores
        self._publisher = publisher
        self._read_example = read_example
        self._failed_messages = 0  # in a row; the model failed for each of their customers

    def process(
        self,
        message: Message[Any],
        model: Model,
        *,
        retries: int,
        is_redelivered: bool,
        is_dead_letter: bool,
    ) -> MessageSummary:
        """Predict a message and store its outcomes, or split it.

        Args:
            message: predictions or a chunk.
            model: predicts the customers.
            retries: the number of attempts that its predictions have lost.
            is_redelivered: the broker delivered it before, and got no acknowledgement.
            is_dead_letter: it comes from the dead-letter queue.

        Returns:
            The numbers of the message.

        Raises:
            Unavailable: the broker failed; the message must go back to the queue.
            ModelError: the model cannot predict anybody; the message must go back to the queue.
        """
        if is_dead_letter:
            retries = max(retries + 1, MAX_RETRIES)
        is_split = is_dead_letter or retries > MAX_RETRIES or (len(message.ids) > 1 and (retries or is_redelivered))
        summary = MessageSummary(message.kind, retries=retries, is_dead_letter=is_dead_letter)
        deadline = time.monotonic() + STORE_RETRY_S
        try:
            if is_split:
                summary.outcome = "split"
                retry_until(deadline, lambda: self.split_and_requeue(message, retries))
            else:
                self._predict_and_save(message, model, deadline, summary)
        except ResultStoreUnavailable as error:
            # Not requeued: a requeue counts as a delivery, and a long outage would exhaust the delivery limit.
            fields = {**message.log_fields, "reason": error}
            log_event(logger, logging.WARNING, "message goes to the end of the queue", fields)
            self._publisher.publish(message, retries)
            self._publisher.close()  # as in split_and_requeue
            summary.outcome = "postponed"
        return summary

    def split_and_requeue(self, message: Message[Any], retries: int) -> None:
        """Publish each pending prediction in a message of its own; after four lost attempts, store a failure instead.

        Args:
            message: predictions or a chunk.
            retries: the number of attempts that its predictions have lost, the current one included.

        Raises:
            Unavailable: the broker or the result store failed.
        """
        pending, outcomes, _ = message.look_up(self._stores)
        if retries > MAX_RETRIES:
            log_event(logger, logging.ERROR, "attempts exhausted", {**message.log_fields, "pending": len(pending)})
            outcomes, pending = {**outcomes, **dict.fromkeys(pending, attempts_exhausted(retries))}, []
        message.save(self._stores, outcomes, None)
        for single in message.split(pending):
            self._publisher.publish(single, retries)
        self._publisher.close()  # the next use may be hours away: keep no idle connection

    def close(self) -> None:
        """Close all connections."""
        self._publisher.close()
        self._stores.predictions.close()
        self._stores.batches.close()

    def _predict_and_save(self, message: Message[Any], model: Model, deadline: float, summary: MessageSummary) -> None:
        """Predict the pending customers of a message, and store all outcomes."""
        clock = [time.perf_counter()]
        pending, expired, summary.waited_s = retry_until(deadline, lambda: message.look_up(self._stores))
        clock.append(time.perf_counter())
        outcomes = dict(expired)
        if pending:
            outcomes |= predict_each(lambda ids: message.predict(model, ids), pending)
            self._check_model(model, [outcomes[id_] for id_ in pending])
        if explained := [
            id_ for id_ in message.explained_ids if isinstance(outcomes.get(id_), float) and model.explains
        ]:
            outcomes |= predict_each(lambda ids: message.explain(model, {id_: outcomes[id_] for id_ in ids}), explained)
        clock.append(time.perf_counter())
        summary.customers, summary.predict_s = len(pending), clock[2] - clock[1]
        summary.failed = sum(isinstance(outcomes[id_], PredictionError) for id_ in pending)
        summary.expired = len(expired)
        if not pending:
            summary.outcome = "skipped"
        waited_s, predict_s = summary.waited_s, round(summary.predict_s, 6)
        times = None if waited_s is None else WorkerTimes(round(waited_s, 6), predict_s)
        retry_until(deadline, lambda: message.save(self._stores, outcomes, model.version, times))
        summary.store_s = clock[1] - clock[0] + time.perf_counter() - clock[2]

    def _check_model(self, model: Model, outcomes: Sequence[object]) -> None:
        """Tell a model that fails from customers that it cannot predict.

        Raises:
            ModelError: the model failed for every customer of this message, and in its trial too. If it has no trial:
                for every customer of three messages in a row.
        """
        if not all(isinstance(outcome, InvalidPrediction) for outcome in outcomes):
            self._failed_messages = 0
            return
        self._failed_messages += 1
        if not model.has_trial:
            model.example = self._read_example()
        if model.has_trial:
            model.try_out()
        elif self._failed_messages >= _FAILED_MESSAGES_BEFORE_STOP:
            raise ModelError(f"the model failed for every customer of {self._failed_messages} messages in a row")


def attempts_exhausted(attempts: int) -> TooManyAttempts:
    """Return the failure of a customer after so many lost attempts."""
    return TooManyAttempts(f"each of {attempts} attempts lost its process or ran out of time")


def predict_each(predict: Callable[[Sequence[Id]], Sequence[T]], ids: Sequence[Id]) -> dict[Id, T | PredictionError]:
    """Predict all customers at once; if that fails, predict each half, and so on: a faulty customer fails alone.

    Args:
        predict: returns n results for n ids, or raises PredictionError.
        ids: n ids.

    Returns:
        By id, the result or the error.

    Raises:
        SoftTimeLimitExceeded: the time limit of the message was reached.
    """
    try:
        return dict(zip(ids, predict(ids), strict=True))
    except PredictionError as error:
        if isinstance(error.__cause__, SoftTimeLimitExceeded):  # reached inside the model; no customer is at fault
            raise error.__cause__ from None
        if (half := len(ids) // 2) > 0:
            return predict_each(predict, ids[:half]) | predict_each(predict, ids[half:])
        cause = error.__cause__ or error  # of the model: its text may have values of the customer
        stack = stack_of(cause)
        logger.warning("prediction failed id=%s type=%s stack=%s error=%s", ids[0], type(cause).__name__, stack, error)
        record_exception(cause)
        return {ids[0]: error}


def retry_until(deadline: float, call: Callable[[], T]) -> T:
    """Call the result store; repeat the call while the store is unavailable and the deadline has not passed.

    Args:
        deadline: on the clock of `time.monotonic`, in seconds.
        call: raises ResultStoreUnavailable if the store does not answer.

    Returns:
        The result of the call.

    Raises:
        ResultStoreUnavailable: the deadline has passed.
    """
    while True:
        try:
            return call()
        except ResultStoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(_STORE_PAUSE_S)
