"""Group commit: predictions are accepted and published many at a time.

One thread publishes, one message at a time; predictions that arrive meanwhile travel in the next message. The thread
waits up to 5 ms while the previous message is not predicted; if the service is idle, it does not wait. Under load one
publish, one confirm, one look-up and one call of the model serve many predictions.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from api.backpressure import Backlog
from celery_task_app.errors import BrokerUnavailable, Overloaded, ResultStoreUnavailable, Unavailable
from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest
from celery_task_app.messaging.publisher import Publisher
from celery_task_app.observability.logs import log_event, stack_of
from celery_task_app.observability.tracing import Tracing, trace_request
from celery_task_app.store.predictions import PredictionStore, is_from_worker

logger = logging.getLogger(__name__)

_FAILURE_COUNTS_S = 3
_ACCEPT_AFTER_S = 0.05  # without another prediction; under load the next message counts the last one, at no cost


class Publication(NamedTuple):
    """How a prediction was published.

    Attributes:
        message_id: of the message that carries it.
        marked_at: when its QUEUED marker was written, on the clock of `time.perf_counter`, in seconds.
    """

    message_id: str
    marked_at: float


@dataclass(slots=True)
class PendingPrediction:
    """A prediction that waits to be published.

    Attributes:
        expires_at: on the clock of `time.monotonic`, in seconds.
        accepted: done once the broker has confirmed, or with the error.
    """

    task_id: str
    request: PredictionRequest
    expires_at: float
    accepted: asyncio.Future[Publication]


class GroupCommitter:
    """The queue of predictions before the broker, and the thread that publishes them. One for an API process."""

    def __init__(  # noqa: PLR0913 - its parts and its limits, the limits by keyword
        self,
        store: PredictionStore,
        publisher: Publisher,
        backlog: Backlog,
        *,
        deadline_s: int,
        max_message_size: int,
        max_pending: int,
        max_delay_s: float = 0.005,
        accept_within_s: float = 2.5,
        on_published: Callable[[int, float], None] = lambda _customers, _seconds: None,
        tracing: Tracing | None = None,
    ) -> None:
        """Start the publishing thread.

        Args:
            store: gets the QUEUED markers.
            publisher: publishes the messages; the thread is its only user, and closes it.
            backlog: of the queue.
            deadline_s: seconds until a prediction expires, unless its client asks for fewer.
            max_message_size: most predictions in one message.
            max_pending: most predictions that wait to be published.
            max_delay_s: longest wait for the previous message to be predicted. Without this wait, Valkey gets one
                message for each prediction.
            accept_within_s: longest wait of a request to be accepted, even if the thread is blocked.
            on_published: is called with the number of customers in a published message, and the seconds until the
                broker had confirmed it.
            tracing: traces the messages, if it is on.
        """
        self._store = store
        self._publisher = publisher
        self._backlog = backlog
        self._deadline_s = deadline_s
        self._max_message_size = max_message_size
        self._max_pending = max_pending
        self._max_delay_s = max_delay_s
        self._accept_within_s = accept_within_s
        self._on_published = on_published
        self._tracing = tracing
        self._pending: queue.SimpleQueue[PendingPrediction | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._published_group = 0  # it is not counted as accepted yet
        self._last_id = b""  # a task id of the message that was published last
        self._last_is_predicted = threading.Event()
        self._last_is_predicted.set()
        self._failure, self._failed_at = "", 0.0
        self._published_at: float | None = None  # the first message since the last completion
        self._thread = threading.Thread(target=self._publish_groups, name="publisher", daemon=True)
        self._thread.start()

    async def submit(self, task_id: str, request: PredictionRequest, deadline_s: float | None = None) -> Publication:
        """Publish one prediction; return once the broker has confirmed.

        Args:
            task_id: a new UUID.
            request: the customer.
            deadline_s: seconds until it expires; the service's own deadline if it is None or longer than that.

        Raises:
            Overloaded: too many predictions wait to be published or in the queue, or the queue is full.
            Unavailable: the broker or the result store did not accept it, within 2.5 seconds.
        """
        self._backlog.refuse_if_full()
        if self._pending.qsize() >= self._max_pending:
            raise Overloaded("too many predictions wait to be published")
        if self._tracing:
            request = replace(request, traceparent=trace_request(task_id))
        expires_at = time.monotonic() + min(deadline_s or self._deadline_s, self._deadline_s)
        pending = PendingPrediction(task_id, request, expires_at, self._loop.create_future())
        self._pending.put(pending)
        late = BrokerUnavailable(f"not published within {self._accept_within_s} s")
        timer = self._loop.call_later(self._accept_within_s, _resolve, [pending], late)
        try:
            return await pending.accepted
        finally:
            timer.cancel()

    @property
    def unpublished(self) -> int:
        """The number of predictions that wait to be published."""
        return self._pending.qsize()

    @property
    def failure(self) -> str:
        """The reason why the last message was not accepted; empty if it was, or after a few seconds without another."""
        return self._failure if time.monotonic() - self._failed_at < _FAILURE_COUNTS_S else ""

    @property
    def uncompleted_s(self) -> float:
        """The seconds since this process published a prediction, if a worker has ended none since; 0 otherwise."""
        published_at = self._published_at
        return 0.0 if published_at is None else time.monotonic() - published_at

    def on_completion(self, message: bytes) -> None:
        """Note that predictions have ended.

        Args:
            message: of the channel of completions; empty if earlier messages may be lost.
        """
        if not message or is_from_worker(message):
            self._published_at = None
        if self._last_id in message:
            self._last_is_predicted.set()

    async def close(self) -> None:
        """Publish all pending predictions, then stop the thread and close the connections."""
        self._pending.put(None)
        await asyncio.to_thread(self._thread.join)

    def _publish_groups(self) -> None:
        while group := self._next_group():
            end: Publication | Unavailable
            try:
                end = self._accept(group)
            except Unavailable as error:
                end = error
            except Exception as error:  # noqa: BLE001 - keep the thread alive
                fields = {"predictions": len(group), "type": type(error).__name__, "stack": stack_of(error)}
                log_event(logger, logging.ERROR, "message not published", fields)
                end = BrokerUnavailable("not published")
            is_away = isinstance(end, Unavailable) and not isinstance(end, Overloaded)
            self._failure, self._failed_at = str(end) if is_away else "", time.monotonic()
            self._loop.call_soon_threadsafe(_resolve, group, end)
        self._count_published()
        self._publisher.close()
        self._store.close()

    def _next_group(self) -> list[PendingPrediction]:
        """Wait for one prediction, and take all that are pending behind it; return nothing once the service closes."""
        group: list[PendingPrediction] = []
        with contextlib.suppress(queue.Empty):
            while len(group) < self._max_message_size:
                pending = self._pending.get_nowait() if group else self._wait_for_first()
                if pending is None:
                    if group:  # publish this group first
                        self._pending.put(None)
                    break
                if not group:
                    self._last_is_predicted.wait(self._max_delay_s)
                if not pending.accepted.done():  # else its request was answered with 503 already
                    group.append(pending)
        return group

    def _wait_for_first(self) -> PendingPrediction | None:
        """Wait for a prediction; if none comes soon, count the last message as accepted."""
        if self._published_group:
            try:
                return self._pending.get(timeout=_ACCEPT_AFTER_S)
            except queue.Empty:
                self._count_published()
        return self._pending.get()

    def _count_published(self) -> None:
        """Count the last message as accepted, unless the worker has predicted and so counted it."""
        if self._published_group and not self._last_is_predicted.is_set():
            try:
                self._store.accept(self._published_group)
            except ResultStoreUnavailable:  # the next message, or the worker, counts it
                return
        self._published_group = 0

    def _accept(self, group: list[PendingPrediction]) -> Publication:
        self._backlog.check()
        now = time.monotonic()
        lifetimes_s = {pending.task_id: pending.expires_at - now for pending in group}
        marked = self._store.mark_queued(lifetimes_s, self._published_group)
        self._published_group = 0
        self._last_id = group[0].task_id.encode()
        self._last_is_predicted.clear()
        earlier = self._published_at
        self._published_at = earlier or now  # before the publish: the completion may come before the confirmation
        message = PredictionMessage({pending.task_id: pending.request for pending in group})
        marked_at = time.perf_counter()
        try:
            with self._tracing.publishing(message, len(group)) if self._tracing else contextlib.nullcontext():
                message_id = self._publisher.publish(message)
        except Exception:
            self._last_is_predicted.set()
            if self._published_at is not None:  # else a prediction has ended meanwhile
                self._published_at = earlier
            with contextlib.suppress(ResultStoreUnavailable):
                self._store.discard([pending.task_id for pending in group])
            raise
        self._on_published(len(group), time.perf_counter() - marked_at)
        self._published_group = marked
        self._backlog.record_published(len(group))
        return Publication(message_id, marked_at)


def _resolve(group: list[PendingPrediction], end: Publication | Unavailable) -> None:
    for pending in group:
        if pending.accepted.done():
            continue
        if isinstance(end, Unavailable):
            pending.accepted.set_exception(end)
        else:
            pending.accepted.set_result(end)
