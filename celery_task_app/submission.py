"""Accepting a prediction: mark it queued, publish it, many at a time (group commit).

One thread publishes, one message at a time, and while the last one has not been predicted yet it waits a little for
more to come (Nagle's algorithm). Customers that come meanwhile ride together in the next message, so an idle service
makes nobody wait, and under load one publish, one confirm, one look-up and one call of the model serve many.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from amqp.exceptions import MessageNacked
from kombu import Connection, Producer, Queue
from kombu.exceptions import OperationalError

from celery_task_app.backlog import Backlog
from celery_task_app.errors import BrokerUnavailable, Overloaded, ResultStoreUnavailable, Unavailable
from celery_task_app.results import ResultStore
from celery_task_app.settings import settings
from celery_task_app.worker import DEAD, PREDICT_TASK, PREDICTIONS, app

logger = logging.getLogger(__name__)

Features = Mapping[str, object]

WITH_REASONS = "?explain"
"""A key beside a customer's features: reasons are wanted. So it stays with the customer, whichever its message."""

# Seconds that a request waits to be accepted, whatever the publishing thread does.
_ACCEPT_WITHIN_S = 2.5

# Seconds that customers wait at most for the message before theirs to be predicted, so that more ride together. Without
# it Valkey, which takes a message in less time than a worker needs to predict one, is sent a message for each customer.
_LINGER_S = 0.005

# Seconds of silence after which a broker is given up.
_STEP_S = 0.7

# Before a queue that may have been deleted is declared again: RabbitMQ tells its consumers of the end only if there is
# no queue of that name by then; else it takes them for the new one's, and they get no message of it.
_PAUSE_S = 0.3


def _refuse_alarm(_reason: str) -> None:
    raise OperationalError("RabbitMQ takes no messages: a memory or disk alarm")


def impatient_connection() -> Connection:
    """Return a connection to the broker, not yet open, that fails within about a second where it can't work.

    A publish on it is confirmed by RabbitMQ: else one that was refused looks like one that was not. On no other
    connection, for the worker's event loop would wait for each of Celery's own events.
    """
    # Without them a frozen RabbitMQ, or Valkey, blocks for ever, and one that is away for two seconds at least.
    options = {
        "read_timeout": _STEP_S,  # of RabbitMQ; a confirm is waited for as long
        "socket_timeout": _STEP_S,  # of Valkey and Redis
        "max_retries": 1,
        "interval_start": 0,
        "confirm_publish": True,
        "on_blocked": _refuse_alarm,
    }
    return app.connection_for_write(transport_options=options, connect_timeout=_STEP_S)


class Publisher:
    """Publishes messages, each confirmed by the broker, on a connection that is opened when it is needed."""

    def __init__(self) -> None:
        self._connection = impatient_connection()
        self._producer: Producer | None = None

    def publish(self, customers: Mapping[str, Features], retries: int = 0) -> None:
        """Return when the broker has the message.

        Args:
            customers: by task id, the 19 features.
            retries: how many attempts to predict them were lost before.

        Raises:
            Overloaded: the queue is full.
            BrokerUnavailable: no confirm. The broker may have the message all the same; predicting it is harmless.
        """
        task_id = next(iter(customers)) if len(customers) == 1 else None
        self.send(PREDICT_TASK, PREDICTIONS, {"customers": customers}, retries, task_id)

    def send(
        self, task: str, to: Queue, kwargs: Mapping[str, object], retries: int = 0, task_id: str | None = None
    ) -> None:
        """Return when the broker has a task's message; the arguments are Celery's. Raises as publish does."""
        # A connection that was left idle may be dead without knowing: what fails on it is tried on a fresh one.
        was_open = self._producer is not None
        try:
            self._send(task, to, kwargs, retries, task_id)
        except (OperationalError, *self._connection.connection_errors, *self._connection.channel_errors) as error:
            if isinstance(error.__cause__, MessageNacked):
                raise Overloaded("the queue is full") from error
            self.close()
            if not was_open:
                raise BrokerUnavailable(f"the broker did not confirm: {error!r}") from error
            time.sleep(_PAUSE_S)
            self.send(task, to, kwargs, retries, task_id)

    def depth(self, of: Queue) -> int:
        """Return how many messages wait in a queue that was published to.

        Raises:
            BrokerUnavailable: there is no connection yet, or it did not tell.
        """
        if self._producer is None:
            raise BrokerUnavailable("not connected")
        passive = self._connection.transport.driver_type == "amqp"  # elsewhere a queue that is empty does not exist
        try:
            return int(of(self._producer.channel).queue_declare(passive=passive).message_count)
        except (OperationalError, *self._connection.connection_errors, *self._connection.channel_errors) as error:
            self.close()
            time.sleep(_PAUSE_S)
            raise BrokerUnavailable(f"the broker did not tell a queue's depth: {error!r}") from error

    def _send(self, task: str, to: Queue, kwargs: Mapping[str, object], retries: int, task_id: str | None) -> None:
        if self._producer is None:
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
        app.send_task(
            task,
            kwargs=kwargs,
            task_id=task_id or str(uuid.uuid4()),
            queue=to,
            retries=retries,
            producer=self._producer,
            declare=[to, DEAD],
            retry=False,  # publish() does that, in bounded time
            mandatory=True,  # RabbitMQ refuses what no queue would take
            ignore_result=True,  # results.py stores the results; Celery would SUBSCRIBE to one for each message
            argsrepr="-",  # customers must not appear in headers and logs; empty ones would be made up by the worker
            kwargsrepr="-",
        )

    def close(self) -> None:
        """Drop the connection without a word to the broker, which may be the one that does not answer."""
        self._producer = None
        self._connection.collect(_STEP_S)


@dataclass(slots=True)
class _Submission:
    task_id: str
    customer: Features
    deadline: float
    accepted: asyncio.Future[None]


class Submissions:
    """The waiting room before the queue, and the thread that empties it. One for an API process."""

    def __init__(self) -> None:
        self._store = ResultStore()
        self._publisher = Publisher()
        self._backlog = Backlog(PREDICTIONS, settings.queue_high_water, self._publisher.depth)
        self._waiting: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._last = b""  # a task id of the message that was published last
        self._is_predicted = threading.Event()
        self._is_predicted.set()
        self._thread = threading.Thread(target=self._publish_groups, name="publisher", daemon=True)
        self._thread.start()

    async def submit(self, task_id: str, customer: Features, deadline_s: float | None = None) -> None:
        """Queue one customer's prediction; return once the broker has confirmed.

        Args:
            task_id: a new UUID.
            customer: the 19 features.
            deadline_s: seconds within which it is computed, or expires; DEADLINE_S at most, and if it is None.

        Raises:
            Overloaded: the waiting room or the queue is full, or too many wait in it.
            Unavailable: the broker or the result store did not take it, within 2.5 seconds.
        """
        self._backlog.refuse_if_full()
        if self._waiting.qsize() >= settings.waiting_room:
            raise Overloaded("too many predictions wait to be queued")
        deadline = time.time() + min(deadline_s or settings.deadline_s, settings.deadline_s)
        submission = _Submission(task_id, customer, deadline, self._loop.create_future())
        self._waiting.put(submission)
        late = BrokerUnavailable(f"not queued within {_ACCEPT_WITHIN_S} s")
        timer = self._loop.call_later(_ACCEPT_WITHIN_S, _settle, [submission], late)
        try:
            await submission.accepted
        finally:
            timer.cancel()

    def hear(self, news: bytes) -> None:
        """Take note of which predictions have ended, as the result store tells it."""
        if self._last in news:
            self._is_predicted.set()

    async def close(self) -> None:
        """Publish what waits, then stop."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _publish_groups(self) -> None:
        while group := self._next_group():
            failure: Unavailable | None = None
            try:
                self._accept(group)
            except Unavailable as error:
                failure = error
            except Exception:
                logger.exception("a group was not published customers=%d", len(group))
                failure = BrokerUnavailable("not queued")
            self._loop.call_soon_threadsafe(_settle, group, failure)
        self._publisher.close()

    def _next_group(self) -> list[_Submission]:
        """Wait for one customer, and take those that wait behind it; nothing once the service closes."""
        group: list[_Submission] = []
        with contextlib.suppress(queue.Empty):
            while len(group) < settings.group_max:
                submission = self._waiting.get_nowait() if group else self._waiting.get()
                if submission is None:
                    if group:  # comes back for it
                        self._waiting.put(None)
                    break
                if not group:
                    self._is_predicted.wait(_LINGER_S)
                if not submission.accepted.done():  # else its time was up, and the client knows
                    group.append(submission)
        return group

    def _accept(self, group: list[_Submission]) -> None:
        self._backlog.read()
        self._store.mark_queued({submission.task_id: submission.deadline for submission in group})
        self._last = group[0].task_id.encode()
        self._is_predicted.clear()
        try:
            self._publisher.publish({submission.task_id: submission.customer for submission in group})
        except Exception:
            self._is_predicted.set()
            with contextlib.suppress(ResultStoreUnavailable):
                self._store.forget([submission.task_id for submission in group])
            raise
        self._backlog.published(len(group))


def _settle(group: list[_Submission], failure: Unavailable | None) -> None:
    for submission in group:
        if submission.accepted.done():
            continue
        if failure:
            submission.accepted.set_exception(failure)
        else:
            submission.accepted.set_result(None)
